"""The examples that the loaders give, and the error for files of another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tools_service.base.errors import ConfigurationError
from tools_service.base.printable import printable

_SHOWN_FIELDS = 8


class BenchmarkFileError(ConfigurationError):
    """A published file that is missing, damaged or of another form; the message says where."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question: `x` its text, `q` the question, as the paper's prompts have them.

    `answers` may be empty: the question is kept, and is wrong. `date` (YYYY-MM-DD) is its day.
    """

    id: str
    x: str
    q: str
    answers: tuple[str, ...]
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a benchmark, and how many others of its files are not part of it, by reason."""

    examples: Sequence[Example]
    left_out: Mapping[str, int] = field(default_factory=dict)


class Loader(Protocol):
    """Reads the files at `source` for the benchmark `name`."""

    def __call__(self, name: str, source: Path) -> Examples: ...


def flat_strings(value: Any, where: str) -> list[str]:
    """The texts in `value`: a text, a number, or lists of them. Raises BenchmarkFileError."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [repr(value)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in flat_strings(item, where)]
    raise BenchmarkFileError(f"{where}: an answer is a text, a number or a list of them, not {shown(value)}")


def text_of(value: Any, name: str, where: str) -> str:
    """The text in the field `name`, without space at its ends. Raises BenchmarkFileError."""
    if not isinstance(value, str):
        raise BenchmarkFileError(f"{where}: {name} must be a text, not {shown(value)}")
    return value.strip()


def shown(value: Any) -> str:
    """`value` in a message: its fields if it is an object."""
    if isinstance(value, Mapping):
        names = [printable(str(name), 40) for name in value]
        more = [f"{len(names) - _SHOWN_FIELDS} more"] if len(names) > _SHOWN_FIELDS else []
        return (
            f"the fields {', '.join(names[:_SHOWN_FIELDS] + more)}" if names else "an object without fields"
        )
    return printable(repr(value), 60)
