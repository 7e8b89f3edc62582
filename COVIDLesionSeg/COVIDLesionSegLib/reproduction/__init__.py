"""The papers' tables: what each row trains, what was published, and the runs that fill the cells."""
