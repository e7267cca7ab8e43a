"""Step 5: from annotated texts to the augmented corpus C* (paper sections 2 and 4.1).

Annotation folders go in; one folder with C* and its manifest comes out. This package must not know
models, torch or Ray.
"""
