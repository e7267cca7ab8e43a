"""The demo's small world: generators of pages, encyclopedia and questions, and small models.

In: seeds. Out: the files in this folder, which `python -m pipeline demo` reads. Nothing here knows
the pipeline; the models are trained with plain torch.
"""
