"""The command `generate` (run.py): its prompts, what it prints, and its prompt loop on a terminal."""
