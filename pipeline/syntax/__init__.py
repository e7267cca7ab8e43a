"""The call syntax as tokens: tokenizers, and a grammar for sampling.

Strings and tokenizers go in; token ids and tables come out. The package runs no model, calls no tool,
and imports neither torch nor Ray. tools_service/syntax/ has the calls as strings.
"""
