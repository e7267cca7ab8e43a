"""The language model engine: sampling from and scoring with any causal LM of transformers, at close to the
least number of tokens (docs/decisions/0001).

In: token ids and a model. Out: hidden states over a shared KV cache, logits, draws, log-probabilities, and
what all of that cost. The engine knows no tool, no threshold and no Ray.
"""
