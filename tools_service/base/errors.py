"""The base of the project's own exceptions. Each module derives its own, next to the code that raises it.

A message names what it concerns (file and line, field, text id, tool, position) and what to do. The
command line prints it without a traceback.
"""

from __future__ import annotations


class ToolformerError(Exception):
    """A run that cannot go on, explained to its user. Exit code 1."""


class ConfigurationError(ToolformerError):
    """A setting, or an input that a setting names, is wrong; nothing has run yet. Exit code 2."""
