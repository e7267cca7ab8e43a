"""What both packages build on: errors, settings, files, fingerprints, checkpoints.

It imports nothing else of this project and knows no tool, no corpus and no Ray.
"""
