"""The Toolformer method (arXiv 2302.04761), one package a chapter (docs/decisions/0014)."""
