"""The paper's analyses: decoding with several k, thresholds, model sizes, and tables in its layout.

paper_figures.py and paper.toml hold what the paper reports; scores.py, decoding.py, scaling.py and
thresholds.py make a `ResultTable` each, and formats.py writes it as Markdown, LaTeX or CSV.
"""
