"""Output folders: row files, manifests, counts, logs and the lock of a folder.

Annotated rows go in; the same rows, their counts and manifest.json come out. This package must not
know models, tools or Ray.
"""
