"""What WikiSearch and QA search with: sources to an index on disk, and BM25, vectors or both over it."""
