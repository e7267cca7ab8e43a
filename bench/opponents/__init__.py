"""Annotation with other inference engines, for comparison with our own.

An engine runs in a process of its own, in an environment that the user names (process.py); it gets
token ids and returns token ids and log-probabilities (worker.py, and the worker of each engine in
bench/vllm/ and bench/sglang/). Everything else is done here (annotator.py). This module imports
nothing, because those environments lack our dependencies.
"""
