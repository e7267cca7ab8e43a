"""Fine-tuning on C* with Ray Train and DeepSpeed (paper section 4.1, Appendix B). In: the folder
that merge wrote and a model. Out: a checkpoint folder with metrics and a manifest. This package
knows the call syntax, but no tools and nothing of how the calls were found.
"""
