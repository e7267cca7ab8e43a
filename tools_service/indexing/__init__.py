"""Builds the index that `retrieval` searches.

In: files of articles. Out: an index folder with passages, BM25 postings and, on request, vectors.
Large sources are read by workers on Ray, which is imported only then. It knows no tool.
"""
