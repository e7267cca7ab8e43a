"""What every package shares: configuration, records with their Arrow schemas, the cost model and GPU peaks.

Nothing here reads a file, loads a model or knows torch or Ray.
"""
