"""Output folders: annotated rows in; row files, manifest.json, counts and logs out.

This package must not know models, tools or Ray.
"""
