"""From corpus files to texts: paths in, a stream of `Text` rows out.

This package must not know models, torch or Ray.
"""
