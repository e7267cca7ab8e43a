"""The paper's benchmarks, read from their published files (section 4.2, Appendices C and D).

In: NAME=PATH. Out: examples with the paper's prompt, score and switched-off tools, which stand in
paper.toml. It imports neither torch nor Ray, and scores nothing.
"""
