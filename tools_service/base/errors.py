"""The base classes of exceptions. Each module derives its own beside the code that raises it.

A message names what it concerns (file and line, field, text id, tool, position) and says what to
do. The command line prints the message without a traceback.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import ClassVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tools_service.base.printable import printable

_MAX_PROBLEMS = 3
_MAX_CHARACTERS = 300
_MAX_VALUE = 60


class ToolformerError(Exception):
    """A run cannot go on. The message explains why to its user."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(ToolformerError):
    """A setting is wrong, or an input that a setting names; nothing has run yet."""

    exit_code = 2


def brief(error: BaseException) -> str:
    """`error` in one line of at most 300 characters: of a ValidationError, its first fields."""
    text = str(error)
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False)
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
    message = _in_plain_words(problem)
    return f"{field}{given}: {message}" if field.strip("-") else message


# Kinds of problems whose sentence in pydantic is about pydantic.
_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "too_short": "give at least {min_length}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "dict_type": "must be pairs of a name and a value",
    "model_type": "must be pairs of a name and a value",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "frozen_set_type": "must be a list",
    "set_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def _in_plain_words(problem: ErrorDetails) -> str:
    plain = _PLAIN.get(problem["type"])
    if plain is None:
        return problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return plain.format(**problem.get("ctx", {}))
