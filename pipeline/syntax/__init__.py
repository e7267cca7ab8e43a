"""The call syntax: calls as strings and as tokens, a grammar for sampling, the annotation prompts.

Tool names, inputs, results and tokenizers go in; strings, token ids and tables come out. The
package runs no model, calls no tool, and imports neither torch nor Ray.
"""
