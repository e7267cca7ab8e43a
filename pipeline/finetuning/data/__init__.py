"""What each optimizer step trains on: C* as token sequences, kept in files, in batches (paper section 4.1).

Imports neither torch nor a model.
"""
