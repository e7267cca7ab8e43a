"""Step 8: accuracy on benchmarks and perplexity on held-out texts (paper section 4).

Question files, corpus files and models go in; evaluation.json and the predictions come out. run.py is the
entry; tasks.py has the work, executors.py and ray_executor.py where it runs, store.py what is kept. Decoding
is in pipeline.inference.
"""
