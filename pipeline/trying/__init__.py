"""Steps 1-4 on a few texts, for people: what each stage does with one tool (docs/trying.md).

`TryConfig` in, records of every stage out, and views of them for a terminal, a pipe or a program. It runs
in this process, without Ray, and writes no file. The stages are those of pipeline.method.
"""
