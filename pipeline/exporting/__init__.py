"""C* in the formats that other trainers read (docs/exporting.md).

formats.py makes the rows, run.py writes the folder, hub.py uploads it.
"""
