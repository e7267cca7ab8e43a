"""Opens and searches the index behind WikiSearch and QA: BM25, vectors, or both fused.

In: an index folder that `indexing` built, and queries. Out: ranked passages. It knows no tool and
no Ray.
"""
