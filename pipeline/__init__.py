"""The Toolformer method (arXiv 2302.04761), one module a step: `ls pipeline/` reads in its order."""

__version__ = "0.1.0.dev0"
