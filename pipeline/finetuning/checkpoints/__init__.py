"""The folder of a fine-tuning run: which run it is, its checkpoints on a disk or elsewhere, its result."""
