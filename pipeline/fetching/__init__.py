"""The command `fetch`: every model of a run in a folder, in safetensors, checked, before a cluster is rented.

wanted.py lists the models, hub.py asks the hub, sources.py chooses files, conversion.py turns pickled weights
into safetensors with unpickling.py in a process of its own, checks.py loads the result, table.py says sizes.
"""
