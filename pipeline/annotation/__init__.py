"""Steps 1-4 on Ray Data: from the corpus to annotated rows (paper section 2).

`AnnotateConfig` goes in; a folder with row files and manifest.json comes out. This package must not
know how calls are sampled, executed or filtered: that is pipeline.method.
"""
