"""Step 8: benchmarks, lenient scores and perplexity (paper section 4); `run.py` puts them together."""
