"""The faults of evaluate. After each, evaluation.json and the predictions have an undisturbed run's bytes."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.faults.commands import Command, FaultError
from bench.faults.outcome import compare, leftovers
from bench.faults.rounds import Faults, Injected
from bench.fixtures import small_evaluation

QUESTIONS, KILLS, LABELS = 300, 3, ("calls", "disabled")


class EvaluateFaults(Faults):
    """An undisturbed evaluation of two labels in one process, and rounds with kills."""

    def start(self, folder: Path, *interruption: Any) -> Command:
        world = self._inputs
        model = world / "model"
        values = {
            "--models": (f"calls={model}", f"disabled={model},disabled"),
            "--compare-with": ("disabled",),
            "--benchmarks": (world / "sums.jsonl", world / "more.jsonl"),
            "--perplexity": (world / "pages.jsonl",),
            "--generation.model.dtype": ("float32",),
            "--generation.model.device": ("cpu",),
            "--generation.tools-off": small_evaluation.TOOLS_OFF,
            "--generation.max-new-tokens": ("12",),
            "--generation.date": ("2023-01-30",),
            "--batch-size": ("16",),
            "--output": (folder / "out" / "e.json",),
        }
        options = [str(part) for name, parts in values.items() for part in (name, *parts)]
        return Command.interrupted(folder, ("evaluate", "--recipe", "demo", *options), *interruption)

    @cached_property
    def _inputs(self) -> Path:
        return small_evaluation.write_world(self.world.new_folder("questions"), QUESTIONS)

    @cached_property
    def undisturbed(self) -> tuple[Path, int]:
        """The folder of an undisturbed evaluation, and the number of its changes."""
        folder = self.world.new_folder("evaluated")
        with self.start(folder) as command:
            if command.wait():
                raise FaultError(f"an undisturbed evaluation failed: {command.message()}")
            return folder, command.changes()

    def prepare(self) -> None:
        _ = self.undisturbed

    def _killed(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        """SIGKILL, and again to the repeated command, each before a change or some milliseconds later."""
        _, changes = self.undisturbed
        moments = []
        code = 1
        for _ in range(KILLS):
            number, pause_s = rng.randint(1, changes // KILLS), rng.choice((0.0, rng.uniform(0, 0.1)))
            with self.start(folder, number, signal.SIGKILL, pause_s) as command:
                code = command.wait()
            moments.append(f"{number}+{1e3 * pause_s:.0f}ms" + ", too late" * (not code))
            if not code:
                break
        return Injected(moment=f"of {changes}: {' '.join(moments)}", code=code, message="")

    kinds = {  # noqa: RUF012
        "evaluate": (_killed, "SIGKILL to evaluate three times, before changes of its files or later"),
    }

    def compare(self, folder: Path, injected: Injected) -> dict[str, Any]:
        undisturbed = self.undisturbed[0]
        injected.problems += leftovers(folder, undisturbed)
        names = ["e.json", *(f"e.{label}.parquet" for label in LABELS)]
        for name in names:
            if (folder / "out" / name).read_bytes() != (undisturbed / "out" / name).read_bytes():
                injected.problems.append(f"the bytes of {name} differ")
        return compare(_rows(folder), dict(_rows(undisturbed)))


def _rows(folder: Path) -> list[tuple[tuple[str, str, str], Any]]:
    return [
        ((label, row["benchmark"], row["id"]), row)
        for label in LABELS
        for row in pq.read_table(folder / "out" / f"e.{label}.parquet").to_pylist()
    ]
