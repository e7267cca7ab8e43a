"""Fault injection: real commands with one fault each, compared with undisturbed runs.

    python -m bench.faults [--rounds 20] [--seed 0] [--kinds driver node …] [--texts 183]

annotating.py has the faults of annotate, merging.py those of merge, finetuning.py those of finetune,
evaluating.py those of evaluate; rounds.py is what they share. recorded.py is the annotate of a round.
commands.py starts commands, interrupt.py stops one at a chosen change of its files, disk.py makes small
file systems, outcome.py compares. __main__.py runs the rounds.
"""
