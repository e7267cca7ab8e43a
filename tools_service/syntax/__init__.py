"""How calls are written: calls as strings, and the prompts that ask a model for them.

In: names of tools, inputs and results; prompt files. Out: strings. No tokens, no model, no Ray.
"""
