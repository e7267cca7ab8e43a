"""The faults of merge. After each, C* is an undisturbed run's to the bit, and nothing else is left."""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.faults.commands import Command, FaultError
from bench.faults.disk import PAGE_BYTES
from bench.faults.outcome import compare, leftovers, rows_by_id
from bench.faults.rounds import Faults, Injected, space_between
from pipeline.storage.row_files import ROWS

OTHER = ("--max-examples", "7")
"""Options of another merge of the same annotations."""
_PATIENCE_S = 15.0  # a merge takes a few seconds


class MergeFaults(Faults):
    """Undisturbed merges, and rounds with a fault."""

    def start(self, folder: Path, *interruption: Any, options: tuple[str, ...] = ()) -> Command:
        annotations = ("--annotations", str(self.world.annotated))
        arguments = ("merge", "--recipe", "demo", *annotations, "--output", str(folder / "out"), *options)
        return Command.interrupted(folder, arguments, *interruption)

    def merged(self, folder: Path, options: tuple[str, ...] = ()) -> int:
        """Merge without a fault; returns the number of changes."""
        with self.start(folder, options=options) as command:
            if command.wait():
                raise FaultError(f"an undisturbed merge failed: {command.last_line()}")
            return command.changes()

    @cached_property
    def undisturbed(self) -> Path:
        """The folder of an undisturbed merge."""
        folder = self.world.new_folder("merged")
        self.merged(folder)
        return folder

    @cached_property
    def other(self) -> tuple[Path, int]:
        """The folder of another merge, over an earlier C*, and its number of changes."""
        folder = self.world.new_folder("merged")
        self.merged(folder)
        return folder, self.merged(folder, OTHER)

    def prepare(self) -> None:
        _ = self.undisturbed, self.other

    def _killed(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        over = rng.random() < 0.5
        if over:
            self.merged(folder, OTHER)
        injected = self.killed(folder, rng, self.other[1])
        if over:
            injected.moment += ", over another"
            self._require_a_corpus(folder, injected)
        return injected

    def _require_a_corpus(self, folder: Path, injected: Injected) -> None:
        """An earlier C* stays until the new one is there, at the least under the name that it is given
        between two renames: the next merge puts it back.
        """
        expected = [pq.read_table(each / "out" / ROWS) for each in (self.undisturbed, self.other[0])]
        for candidate in (folder / "out", *folder.glob(".out.*.old")):
            with suppress(OSError, ValueError):
                if pq.read_table(candidate / ROWS) in expected:
                    return
        injected.problems.append("after the kill there is neither the earlier C* nor the new one")

    def _full_disk(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self.full_disk(folder, stack, space_between(rng, PAGE_BYTES, self.undisturbed))

    def _two(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        number = rng.randint(1, self.other[1])

        def first(*interruption: Any) -> Command:
            return self.start(folder, *interruption)

        def second() -> Command:
            return self.start(folder, options=OTHER)

        codes, message, problems = self.together(first, second, number, _PATIENCE_S)
        moment = f"change {number}: exit codes {codes[0]} and {codes[1]}"
        if all(codes):
            problems.append("both were refused")
        # Both may have succeeded, one after the other.
        choices = (self.undisturbed, self.other[0])
        succeeded = [each for each, code in zip(choices, codes, strict=True) if not code]
        equal = [each for each in succeeded if _rows(folder) == _rows(each)]
        return Injected(
            moment=moment, code=0, message=message, problems=problems, undisturbed=(equal or succeeded)[0]
        )

    kinds = {  # noqa: RUF012
        "merge": (_killed, "SIGKILL to merge before a change of its files, or some milliseconds later"),
        "mergedisk": (_full_disk, "the file system of merge's output is full until the command has ended"),
        "merges": (_two, "another merge into the output of one that stands still between two changes"),
    }

    def compare(self, folder: Path, injected: Injected) -> dict[str, Any]:
        undisturbed = injected.undisturbed or self.undisturbed
        injected.problems += leftovers(folder, undisturbed)
        if injected.undisturbed is None and _files(folder) != _files(undisturbed):
            injected.problems.append("the bytes of the row files differ")
        return compare(_rows(folder), dict(_rows(undisturbed)))


def _rows(folder: Path) -> list[tuple[int, Any]]:
    return rows_by_id(folder / "out" / ROWS)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out" / ROWS).iterdir()}
