"""Between MRML nodes and arrays: volumes, segmentations, tables, plots, records, parameters."""
