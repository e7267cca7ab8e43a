"""Steps 1-4 on Ray Data: `AnnotateConfig` in, row files and manifest.json out (paper section 2).

This package must not know how calls are sampled, executed or filtered: pipeline.method does that.
"""
