"""SGLang as an engine that bench.annotate compares ours with (docs/decisions/0014)."""
