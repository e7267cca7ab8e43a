"""The corpus on one core: reading, parsing, splitting, selecting, tokenizing (bench.corpus).

made_files.py makes the files, stages.py times the steps on them, datatrove_worker.py reads them with
datatrove in an environment that the user names, and __main__.py is the command. This module imports
nothing, because that environment lacks our dependencies.
"""
