"""Command-line options that were renamed; both command lines still accept the old names.

In: the arguments of a command line. Out: the same with the current option names. Files with old
field names are read by settings.py (`Frozen.RENAMED`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Old and current name, with hyphens, without the sections in front.
RENAMED_OPTIONS = {
    "batch-tokens": "max-batch-tokens",
    "calculator-random-share": "calculator.select.random-share",
}
_OLD_NAMES = "|".join(RENAMED_OPTIONS).replace("-", "[-_]")
_OLD_OPTION = re.compile(rf"^(--(?:[^=]*\.)?)({_OLD_NAMES})(?==|$)")


def current_options(argv: Iterable[str]) -> list[str]:
    """`argv` with current names: --model.batch_tokens=8 becomes --model.max-batch-tokens=8."""
    return [_OLD_OPTION.sub(_current_name, option, count=1) for option in argv]


def _current_name(option: re.Match[str]) -> str:
    return option[1] + RENAMED_OPTIONS[option[2].replace("_", "-")]
