"""The base classes of exceptions. Each module derives its own beside the code that raises it.

A message names what it concerns (file and line, field, text id, tool, position) and says what to
do. The command line prints the message without a traceback.
"""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_MAX_PROBLEMS = 3
_MAX_CHARACTERS = 300


class ToolformerError(Exception):
    """A run cannot go on. The message explains why to its user. Exit code 1."""


class ConfigurationError(ToolformerError):
    """A setting is wrong, or an input that a setting names; nothing has run yet. Exit code 2."""


def brief(error: BaseException) -> str:
    """`error` in one line of at most 300 characters: of a ValidationError, its first fields."""
    text = str(error)
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = [_problem(problem) for problem in problems[:_MAX_PROBLEMS]]
        if len(problems) > _MAX_PROBLEMS:
            shown.append(f"and {len(problems) - _MAX_PROBLEMS} more")
        text = "; ".join(shown)
    line = " ".join(text[: 4 * _MAX_CHARACTERS].split()) or type(error).__name__
    return line if len(line) <= _MAX_CHARACTERS else f"{line[: _MAX_CHARACTERS - 2]} …"


def _problem(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {message}" if field else message
