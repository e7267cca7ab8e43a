"""Step 8: accuracy on benchmarks and perplexity on held-out texts (paper section 4).

Question files, corpus files and models go in; evaluation.json and the predictions come out. The
package uses pipeline.inference to decode and knows nothing of Ray.
"""
