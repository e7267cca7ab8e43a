"""The report: one self-contained HTML page about a run or a part of it (docs/report.md).

In: output folders of annotate, merge, finetune and evaluate. Out: one file, without a model and without
network. data.py is the content, the section modules collect it, document.py writes the page of assets/.
"""
