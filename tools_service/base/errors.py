"""The base classes of exceptions. Each module derives its own beside the code that raises it.

A message names what it concerns (file and line, field, text id, tool, position) and says what to
do. The command line prints the message without a traceback.
"""

from __future__ import annotations


class ToolformerError(Exception):
    """A run cannot go on. The message explains why to its user. Exit code 1."""


class ConfigurationError(ToolformerError):
    """A setting is wrong, or an input that a setting names; nothing has run yet. Exit code 2."""
