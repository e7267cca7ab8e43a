"""The faults of annotate, on a cluster of two nodes: the rows are an undisturbed run's to the bit.

Besides, few texts may be annotated again: at most SHARE_AGAIN of those whose annotation had ended, or a
batch per actor if that is more; and BATCHES_IN_FLIGHT times as many that were being annotated.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from bench.faults.commands import TIMEOUT_S, Command, FaultError
from bench.faults.disk import PAGE_BYTES, disk_bytes
from bench.faults.merging import MergeFaults
from bench.faults.outcome import compare, leftovers, rows_by_id
from bench.faults.recorded import RecordedBatch, live_actors, record_folder, repetitions
from bench.faults.rounds import Faults, Injected
from bench.faults.world import ACTORS, HEALTH_LIMIT_S, NODE, TEXTS_PER_BATCH
from cluster.local import LocalNode
from pipeline.annotation.run import BATCHES_IN_FLIGHT
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.files import PART

SHARE_AGAIN = 0.02
STOP_S = 60.0
_START_BYTES = 64 * 2**10  # manifest.json, the lock and the log
_ACTOR = RecordedBatch.__name__


class AnnotateFaults(Faults):
    """An undisturbed run, and rounds with a fault."""

    stop_s = STOP_S
    """How long the kind `stop` lasts."""

    def start(self, folder: Path, *interruption: Any) -> Command:
        output = folder / "out"
        record_folder(output).mkdir(exist_ok=True)
        call = f"run_annotate({str(self.world.inputs)!r}, {str(output)!r})"
        code = f"import sys; from bench.faults.recorded import run_annotate; sys.exit({call})"
        return Command(["-c", code], self.world.cluster.environment)

    @cached_property
    def undisturbed(self) -> Path:
        """The folder of an undisturbed run."""
        folder = self.world.new_folder("annotated")
        with self.start(folder) as command:
            if command.wait():
                raise FaultError(f"the undisturbed annotate failed: {command.message()}")
        return folder

    @cached_property
    def rows(self) -> dict[int, Any]:
        """The rows of the undisturbed run by id."""
        return dict(rows_by_id(self.undisturbed / "out" / ROWS))

    @property
    def files(self) -> int:
        """The number of its files."""
        return len(parquet_files(self.undisturbed / "out" / ROWS))

    def prepare(self) -> None:
        _ = self.rows

    def _actor(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._alone(self._kill_an_actor, folder, rng)

    def _stop(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._alone(self._stop_an_actor, folder, rng, least=1)

    def _node(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._alone(self._kill_a_node, folder, rng)

    def _stop_node(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._alone(self._stop_a_node, folder, rng)

    def _alone(self, fault: Any, folder: Path, rng: random.Random, least: int = 0) -> Injected:
        """A fault that the run must survive by itself."""
        with self.start(folder) as command:
            moment = self._wait_for_files(command, folder, rng, least)
            moment += fault(folder / "out", rng)
            code, message = command.wait(), command.message()
            problems = [f"{name} survives" for name in command.survivors()]
        problems += [f"the run did not go on by itself: {message[:300]}"] * bool(code)
        return Injected(moment=moment, code=code, message=message, problems=problems)

    def _driver(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        with self.start(folder) as command:
            moment = self._wait_for_files(command, folder, rng)
            command.kill()
            return Injected(moment=moment, code=command.wait(), message="")

    def _both(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        with self.start(folder) as command:
            moment = self._wait_for_files(command, folder, rng) + self._kill_an_actor(folder / "out", rng)
            time.sleep(rng.uniform(1, 5))
            command.kill()
            return Injected(moment=moment, code=command.wait(), message="")

    def _half(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        injected = self._driver(folder, rng, stack)
        injected.lost_texts = TEXTS_PER_BATCH
        _cut_file(folder / "out" / ROWS, rng)
        return injected

    def _restart(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        with self.start(folder) as command:
            moment = self._wait_for_files(command, folder, rng)
            self.world.cluster.stop()
            self.world.cluster.__enter__()
            return Injected(moment=moment, code=command.wait(), message=command.last_line())

    def _full_disk(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        files, rows = rng.randrange(self.files // 2), self.undisturbed / "out" / ROWS
        bytes_ = _START_BYTES + disk_bytes(rows) * files // self.files
        return self.full_disk(folder, stack, PAGE_BYTES * (bytes_ // PAGE_BYTES), f"room for {files} files")

    def _twice(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        """Exactly one of the two processes must be refused."""
        with self.start(folder) as first:
            time.sleep(rng.choice((0.0, rng.uniform(0, 5))))
            with self.start(folder) as second:
                codes = (first.wait(), second.wait())
                refused = [each for each, code in zip((first, second), codes, strict=True) if code]
                message = "; ".join(each.message() for each in refused)
                problems = [text for each in refused for text in each.complaint("writing", "in use")]
        if len(refused) != 1:
            problems.append(f"exactly one process should have been refused: {message[:300]}")
        moment = f"exit codes {codes[0]} and {codes[1]}"
        return Injected(moment=moment, code=min(codes), message=message, problems=problems)

    def _drivers(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        """A merge into the output of annotate: it stands still between two changes meanwhile."""
        merges = MergeFaults(self.world)
        number = rng.randint(1, merges.other[1] - 2)  # two more come only over an earlier C*

        def first(*interruption: Any) -> Command:
            return merges.start(folder, *interruption)

        codes, message, problems = self.together(first, lambda: self.start(folder), number, TIMEOUT_S / 2)
        if sorted(map(bool, codes)) != [False, True]:
            problems.append("exactly one should have been refused")
        moment = f"merge at change {number}: exit codes {codes[0]} and {codes[1]}"
        undisturbed = merges.undisturbed if codes[1] else None
        return Injected(moment=moment, code=0, message=message, problems=problems, undisturbed=undisturbed)

    kinds = {  # noqa: RUF012
        "actor": (_actor, "SIGKILL to the process of an annotating actor"),
        "node": (_node, "SIGKILL to all processes of a node; another node joins"),
        "driver": (_driver, "SIGKILL to the process that was started"),
        "restart": (_restart, "SIGKILL to every node, the head too; a new cluster"),
        "stop": (_stop, f"SIGSTOP to the process of an annotating actor for {STOP_S:.0f} s"),
        "stopnode": (_stop_node, "SIGSTOP to a raylet or all of its node until Ray takes the node for dead"),
        "disk": (_full_disk, "the output's file system is full until the command has ended"),
        "both": (_both, "SIGKILL to an annotating actor, and some seconds later to the driver"),
        "half": (_half, "SIGKILL to the driver; a file cut at a random byte, another left unfinished"),
        "twice": (_twice, "the same command, started twice at once"),
        "drivers": (_drivers, "a merge that stands still between two changes of its files, and an annotate"),
    }

    def compare(self, folder: Path, injected: Injected) -> dict[str, Any]:
        output = folder / "out"
        if injected.undisturbed:  # of a merge
            injected.problems += leftovers(folder, injected.undisturbed)
            return compare(rows_by_id(output / ROWS), dict(rows_by_id(injected.undisturbed / "out" / ROWS)))
        injected.problems += leftovers(folder, self.undisturbed)
        if read_manifest(output).state != "finished":
            injected.problems.append("exit code 0, but the manifest is not finished")
        injected.problems += self._actors_left()
        allowed = max(int(SHARE_AGAIN * len(self.rows)), ACTORS * TEXTS_PER_BATCH)
        allowed += injected.lost_texts
        return compare(rows_by_id(output / ROWS), self.rows) | {
            "again": repetitions(output, "done"),
            "begun_again": repetitions(output, "begun"),
            "allowed": allowed,
            "allowed_begun": BATCHES_IN_FLIGHT * allowed,
        }

    def _wait_for_files(self, command: Command, folder: Path, rng: random.Random, least: int = 0) -> str:
        """Wait for a random number of files and a moment more; returns the moment in words."""
        files, pause_s = rng.randrange(least, self.files), rng.random()
        rows = folder / "out" / ROWS
        command.wait_until(lambda: len(parquet_files(rows)) >= files, f"{files} files")
        time.sleep(pause_s)
        return f"{files} files + {1e3 * pause_s:.0f} ms" + ", too late" * command.ended

    def _kill_an_actor(self, output: Path, rng: random.Random) -> str:
        return _signal(live_actors(output), rng, signal.SIGKILL)[0]

    def _stop_an_actor(self, output: Path, rng: random.Random) -> str:
        moment, stopped = _signal(live_actors(output), rng, signal.SIGSTOP)
        if stopped:
            time.sleep(self.stop_s)
            _continue([stopped])
        return moment

    def _kill_a_node(self, output: Path, rng: random.Random) -> str:
        self.world.cluster.kill_node(rng.choice(sorted(self.world.cluster.nodes)))
        self.world.cluster.add_node(NODE)
        return ""

    def _stop_a_node(self, output: Path, rng: random.Random) -> str:
        """Ray takes the node for dead, but its processes wake up. The raylet then ends by itself."""
        cluster = self.world.cluster
        node: LocalNode = cluster.nodes.pop(rng.choice(sorted(cluster.nodes)))
        raylet, whole = psutil.Process(node.pid), rng.random() < 0.5
        stopped = [raylet, *(raylet.children(recursive=True) if whole else ())]
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        began = time.monotonic()
        cluster.add_node(NODE)
        time.sleep(max(0.0, HEALTH_LIMIT_S - (time.monotonic() - began)))
        _continue([process.pid for process in stopped])
        return ", all processes" if whole else ", the raylet"

    def _actors_left(self) -> list[str]:
        """Annotators that still run on the cluster half a minute after the end."""
        until = time.monotonic() + 30
        while alive := _named(self.world.cluster.pid, _ACTOR):
            if time.monotonic() > until:
                return [f"{process.name()} survives" for process in alive]
            time.sleep(0.2)
        return []


def _named(ancestor: int, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.Error):
            if name in process.name():
                found.append(process)
    return found


def _signal(pids: Sequence[int], rng: random.Random, sign: signal.Signals) -> tuple[str, int | None]:
    if not pids:
        return ", no actor yet", None
    pid = rng.choice(pids)
    os.kill(pid, sign)
    return "", pid


def _continue(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _cut_file(rows: Path, rng: random.Random) -> None:
    """Do what a crash of the machine does: cut a file, and leave one under a temporary name."""
    if files := parquet_files(rows):
        file = rng.choice(files)
        os.truncate(file, rng.randrange(file.stat().st_size))
        (rows / (file.name + PART)).write_bytes(b"PAR1")
