"""Step 5: annotation folders in, the augmented corpus C* out (paper sections 2 and 4.1).

This package must not know models, torch or Ray.
"""
