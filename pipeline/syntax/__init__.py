"""The call syntax: calls as strings and as tokens, the grammar of a sampled call, the annotation prompts.

Tool names, inputs, results and tokenizers go in; strings, token ids and tables come out. The package runs
no model, calls no tool, and imports neither torch nor Ray.
"""
