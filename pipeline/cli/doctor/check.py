"""The result of a check, in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and what to do if it is not well."""

    name: str
    state: State
    found: str
    advice: str = ""

    def line(self, width: int) -> str:
        """One line, with the name in `width` characters."""
        advice = f": {self.advice}" if self.advice else ""
        return f"{self.state:<7}  {self.name:<{width}}  {self.found}{advice}"


def size(count: int) -> str:
    """A number of bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
