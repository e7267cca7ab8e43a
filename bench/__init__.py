"""Benchmarks: each measures one property and writes its numbers to runs/bench.

In: the demo's models and pages, or files the user names. Out: a table on standard output and a JSON
file with hardware, versions, settings and command. The package uses every other package; no package
uses it, apart from tests. It imports nothing itself, because vLLM's worker runs without our
dependencies.
"""
