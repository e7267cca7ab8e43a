"""What a command would do, collected line by line; what keeps it from doing so is collected, too.

In: facts, from steps.py. Out: text for standard output. Only names, sizes and manifests are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools_service.base.adapters import model_inputs
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.fingerprint import FileState, input_states
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.ownership import OutputKind, require_own
from tools_service.base.staged_models import staged_source

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass
class Preview:
    """What would be read, run and written, each as (what, details); and the problems."""

    reads: list[tuple[str, str]] = field(default_factory=list)
    runs: list[tuple[str, str]] = field(default_factory=list)
    writes: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Collect the error of the block, so that what follows is looked at, too."""
        try:
            yield
        except ToolformerError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def read(self, what: str, names: Iterable[str | Path]) -> None:
        """Files, folders, globs and URIs that would be read; each that is missing is a problem."""
        for name in map(str, names):
            if "://" in name:
                self.reads.append((what, f"{name}: not on this machine, not looked at"))
                continue
            states = [state for state in input_states([name]) if isinstance(state, FileState)]
            self.reads.append((what, f"{name}: {count_and_bytes(state.size for state in states)}"))
            if not states:
                self.problems.append(f"{what}: {name}: there is no such file or folder, or it is empty")

    def read_model(self, path: str, what: str = "model") -> bool:
        """A model; return whether it is a folder on this machine, which can be checked."""
        path = staged_source(path)
        if Path(path).exists():
            self.read(what, [path])
            with self.checking():
                self.read("base model", filter(os.path.isdir, model_inputs(path, f"{what}.path")[1:]))
            return True
        if may_be_hub_name(path):
            self.reads.append((what, f"{path}: a model of the hub, not looked at"))
        else:
            self.reads.append((what, f"{path}: missing"))
            self.problems.append(f"{what}.path {path!r}: there is no such folder")
        return False

    def write(self, output: Path, kind: OutputKind, state: str | None = None) -> None:
        """An output; `state` says what becomes of it, else whether it exists does."""
        problems = len(self.problems)
        with self.checking():
            require_own(output, kind)
            state = state or ("exists, would be replaced" if output.exists() else "new")
        self.writes.append((str(output), state if len(self.problems) == problems and state else "refused"))

    def require_nothing_missing(self) -> None:
        """Raises ConfigurationError if there are problems."""
        if self.problems:
            count = len(self.problems)
            raise ConfigurationError(f"would not run: {count} problem{'s'[: count > 1]}, named above")

    def text(self) -> str:
        """The lines under four headings."""
        lines = []
        headings = {"would read": self.reads, "would run": self.runs, "would write": self.writes}
        for heading, entries in headings.items():
            width = max((len(what) for what, _ in entries), default=0)
            lines += [
                heading,
                *(f"  {what:<{width}}  {details}".rstrip() for what, details in entries or [("nothing", "")]),
            ]
        lines += ["missing or wrong", *(f"  ! {problem}" for problem in self.problems)]
        return "\n".join(lines if self.problems else [*lines[:-1], "nothing is missing"])


def count_and_bytes(sizes: Iterable[int | None]) -> str:
    known = list(sizes)
    total = float(sum(size or 0 for size in known))
    unit = 0
    while total >= 1_000 and unit < len(_UNITS) - 1:
        total, unit = total / 1_000, unit + 1
    count = f"{len(known):,} file{'s' if len(known) != 1 else ''}"
    return f"{count}, {total:.{1 if unit else 0}f} {_UNITS[unit]}"
