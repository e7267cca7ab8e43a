"""`plan`: estimates what annotating a corpus will take. In: a `PlanConfig`. Out: a `Plan`.

Nothing here may load model weights or start Ray.
"""
