"""The filter by itself: what insertions that others made are worth, on Ray for files of any size.

In: JSON lines with a text, a position and an insertion. Out: the same lines with their losses and gains.
The losses are those of pipeline.method.insertions. It knows no tools and draws nothing.
"""
