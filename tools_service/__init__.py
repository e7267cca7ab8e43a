"""The tools that a language model calls, and everything needed to run them.

In: a configuration and lists of calls. Out: a result or a reason for each call. The tools are plain
classes; only `serving` and `indexing` know Ray, and nothing here knows the package `pipeline`.
"""
