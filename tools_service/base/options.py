"""Command-line options that were renamed; both command lines still accept the old names.

In: the arguments of a command line. Out: the same with the current option names. Files with old
field names are read by settings.py (`Frozen.RENAMED`).
"""

from __future__ import annotations

from collections.abc import Iterable

RENAMED_OPTIONS = {"batch-tokens": "max-batch-tokens"}
"""Old and current name, with hyphens, without the sections in front."""


def current_options(argv: Iterable[str]) -> list[str]:
    """`argv` with current names: --model.batch_tokens=8 becomes --model.max-batch-tokens=8."""
    return [_current(argument) for argument in argv]


def _current(argument: str) -> str:
    option, equals, value = argument.partition("=")
    section, dot, name = option.removeprefix("--").rpartition(".")
    current = RENAMED_OPTIONS.get(name.replace("_", "-"))
    if current is None or not option.startswith("--"):
        return argument
    return f"--{section}{dot}{current}{equals}{value}"
