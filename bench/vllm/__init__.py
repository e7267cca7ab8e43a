"""Annotation with vLLM, for comparison with our engine.

vLLM runs in a process of its own, in an environment that the user names (worker.py, started by
process.py); it gets token ids and returns token ids and log-probabilities. Everything else is done
here (job.py). This module imports nothing, because that environment lacks our dependencies.
"""
