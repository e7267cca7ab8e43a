"""The embedded default: a small world, its pages, its encyclopedia, its questions, its small models."""
