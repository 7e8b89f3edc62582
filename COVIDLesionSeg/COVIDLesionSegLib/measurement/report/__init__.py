"""The report: one page without patient data, with its pictures and charts."""
