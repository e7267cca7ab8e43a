"""The base classes of exceptions. Each module derives its own beside the code that raises it.

A message names what it concerns (file and line, field, text id, tool, position) and says what to
do. The command line prints the message without a traceback.
"""

from __future__ import annotations

from pathlib import PurePath

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tools_service.base.printable import printable

_MAX_PROBLEMS = 3
_MAX_CHARACTERS = 300
_MAX_VALUE = 60


class ToolformerError(Exception):
    """A run cannot go on. The message explains why to its user. Exit code 1."""


class ConfigurationError(ToolformerError):
    """A setting is wrong, or an input that a setting names; nothing has run yet. Exit code 2."""


def brief(error: BaseException) -> str:
    """`error` in one line of at most 300 characters: of a ValidationError, its first fields."""
    text = str(error)
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False)
        fields = [".".join(map(str, problem["loc"])) for problem in problems[:_MAX_PROBLEMS]]
        shown = [describe_problem(*pair) for pair in zip(problems, fields, strict=False)]
        if len(problems) > _MAX_PROBLEMS:
            shown.append(f"and {len(problems) - _MAX_PROBLEMS} more")
        text = "; ".join(shown)
    line = (
        printable(" ".join(text[: 4 * _MAX_CHARACTERS].split()), 4 * _MAX_CHARACTERS) or type(error).__name__
    )
    return line if len(line) <= _MAX_CHARACTERS else f"{line[: _MAX_CHARACTERS - 2]} …"


def describe_problem(problem: ErrorDetails, field: str) -> str:
    """A problem that pydantic found in `field` ("" for the whole), with the value if it is short."""
    value = problem["input"]
    given = ""
    if isinstance(value, str | PurePath):
        given = f" = {str(value)[:_MAX_VALUE]!r}"
    elif isinstance(value, int | float):
        given = f" = {str(value)[:_MAX_VALUE]}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}{given}: {message}" if field.strip("-") else message
