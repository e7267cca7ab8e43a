"""The command line: commands, recipes (presets) and the demo that runs every step. In: arguments.
Out: one configuration per step, messages and exit codes. No other package may import this one.
"""
