"""From corpus files to texts: list files, read documents, split them into passages, assign ids.

Paths go in; a stream of `Text` rows comes out. This package must not know models, torch or Ray.
"""
