"""A round: inject a fault, repeat the command until it succeeds, compare with an undisturbed run."""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.faults.commands import Command, FaultError
from bench.faults.disk import PAGE_BYTES, disk_bytes, small_disk
from bench.faults.outcome import Round
from bench.faults.world import World

MAX_STARTS = 4
_MAX_PAUSE_S = 0.02
Inject = Callable[[Any, Path, random.Random, ExitStack], "Injected"]


@dataclass(kw_only=True)
class Injected:
    """A fault that was injected, until the disturbed commands had ended."""

    moment: str
    code: int
    """Exit code of the command; if it is not 0, the command is repeated."""
    message: str
    problems: list[str] = field(default_factory=list)
    undisturbed: Path | None = None
    """Folder of the run that the output must equal, if the fault decides that."""
    lost_texts: int = 0
    """Finished texts that the fault itself removes."""
    other_sums: bool = False
    """Whether the rest was computed in another order, so that numbers differ in the last digits."""


class Faults(ABC):
    """The faults of one command. `kinds` has a method for each, and a description."""

    kinds: ClassVar[Mapping[str, tuple[Inject, str]]]

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def start(self, folder: Path, *interruption: Any) -> Command:
        """Start the command with the output `folder`/out; `interruption` is that of Command.interrupted."""

    @abstractmethod
    def compare(self, folder: Path, injected: Injected) -> dict[str, Any]:
        """Fields of Round: how the output differs from an undisturbed run's. May add problems."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what all rounds share."""

    def round(self, kind: str, rng: random.Random) -> Round:
        """Inject one fault of `kind` at a moment drawn from `rng`, and repeat the command until it succeeds.

        FaultError if it does not after MAX_STARTS starts.
        """
        self.prepare()
        folder, began = self.world.new_folder(), time.monotonic()
        inject, _ = self.kinds[kind]
        with ExitStack() as stack:
            injected = inject(self, folder, rng, stack)
            starts = self._repeat(folder, injected) if injected.code else 1
            differences = self.compare(folder, injected)
        return Round(
            kind=kind,
            moment=injected.moment,
            starts=starts,
            seconds=round(time.monotonic() - began, 1),
            message=injected.message[:500],
            problems=injected.problems,
            **differences,
        )

    def _repeat(self, folder: Path, injected: Injected) -> int:
        """Start the command until it succeeds; returns the number of all starts. Adds problems."""
        for starts in range(2, MAX_STARTS + 1):
            with self.start(folder) as command:
                if not command.wait():
                    injected.problems += [f"{name} survives" for name in command.survivors()]
                    return starts
                message = command.message()[:600]
        raise FaultError(f"{injected.moment}: {MAX_STARTS} starts, and the last failed: {message}")

    def killed(self, folder: Path, rng: random.Random, changes: int) -> Injected:
        """SIGKILL before a change of the output, or some milliseconds later."""
        number, pause_s = rng.randint(1, changes), rng.choice((0.0, rng.uniform(0, _MAX_PAUSE_S)))
        with self.start(folder, number, signal.SIGKILL, pause_s) as command:
            code, message = command.wait(), command.message()
        late = ", too late" * (not code)
        return Injected(
            moment=f"change {number} of {changes} + {1e3 * pause_s:.0f} ms{late}", code=code, message=message
        )

    def full_disk(self, folder: Path, stack: ExitStack, bytes_: int, moment: str = "") -> Injected:
        """A file system of so many bytes for the round's folder, until the command has ended."""
        disk = stack.enter_context(small_disk(folder, bytes_))
        with self.start(folder) as command:
            code, message = command.wait(), command.message()
            problems = command.complaint("No space left", "disk is full") if code else []
        disk.enlarge()
        moment = moment or f"room for {bytes_ // PAGE_BYTES} pages"
        return Injected(
            moment=moment + ", enough" * (not code), code=code, message=message, problems=problems
        )

    def together(
        self,
        first: Callable[..., Command],
        second: Callable[[], Command],
        number: int,
        patience_s: float,
    ) -> tuple[tuple[int, int], str, list[str]]:
        """Start `first`, stop it before its change `number`, start `second`, and resume `first` when that
        has ended, or waits for `first`. Returns the exit codes, the message of a refused one, problems.
        """
        with first(number, signal.SIGSTOP) as one:
            one.wait_until_stopped()
            with second() as two:
                until = time.monotonic() + patience_s
                two.wait_until(lambda: time.monotonic() > until, "ended")
                one.resume()
                codes = (one.wait(), two.wait())
                problems, messages = [], []
                for command, code in zip((one, two), codes, strict=True):
                    problems += [f"{name} survives" for name in command.survivors()]
                    if code:
                        messages.append(command.message())
                        problems += command.complaint("writing", "holds", "in use", "manifest")
        return codes, "; ".join(messages), problems


def space_between(rng: random.Random, least: int, folder: Path) -> int:
    """Random bytes, in pages, from `least` up to a page less than `folder` takes on a disk."""
    pages = disk_bytes(folder) // PAGE_BYTES
    return PAGE_BYTES * rng.randint(least // PAGE_BYTES, pages - 1)
