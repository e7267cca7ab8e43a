"""What a tool is: its declaration, its parameters, and what it must answer.

In: declarations from this package, from entry points and from a file. Out: specifications, and tools that are
ready to answer. The package names no tool but in builtin.py.
"""
