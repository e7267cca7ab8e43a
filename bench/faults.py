"""Whether annotating survives: a real cluster, faults at random moments, and the rows of an undisturbed run.

    python -m bench.faults [--rounds 20] [--seed 0] [--kinds driver node …] [--texts 603]

A round starts `annotate` (small real model, calculator and calendar on Ray Serve, two actors on the two nodes
of a cluster.local), lets one thing happen at a seeded moment, starts the same command again until it ends
well, and compares: rows equal to the last bit and in any order, none missing, none twice; at most `allowed`
texts whose annotation had ended, and twice as many that were in work, are annotated again. Kinds of faults:
KINDS. Out: a line a round, runs/bench/faults.json; exit code 1 if a round failed. `disk` needs the right to
mount a tmpfs and is left out where there is none.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench import results
from bench.fixtures import small_run as annotating
from cluster.local import ROOT, LocalCluster
from pipeline.annotation.annotator_actor import AnnotateBatch
from pipeline.annotation.run import BATCHES_IN_FLIGHT, annotate
from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.errors import ToolformerError

KINDS = {
    "actor": "SIGKILL to the process of an annotating actor",
    "node": "SIGKILL to all processes of a node; another node joins",
    "driver": "SIGKILL to the process that was started",
    "restart": "SIGKILL to every node, the head too; a new cluster",
    "disk": "the output's file system is full until the run has ended",
    "both": "SIGKILL to an annotating actor, and some seconds later to the driver",
    "half": "SIGKILL to the driver; a file cut at a random byte, another left unfinished",
    "twice": "the same command, started twice at once",
}
ACTORS, TEXTS_PER_BATCH, SHARDS = 2, 8, 3
SHARE_AGAIN = 0.02
STARTS = 4
"""Most times that a round's command is given."""
PATIENCE_S = 420.0
_NODE = "cpus=4"
_START_BYTES = 64 * 2**10  # manifest.json, the lock and the log


class FaultError(Exception):
    """A round that could not be carried out: nothing is known about its kind."""


class Recorded(AnnotateBatch):
    """Writes down what it computes, in a file per process that a kill leaves whole."""

    def __init__(self, config: Any, tools: Any, tally: Any) -> None:
        super().__init__(config, tools, tally)
        record = record_of(config.output) / str(os.getpid())
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        ids = " ".join(map(str, batch["text_id"].to_pylist()))
        if self._refused is None:
            os.write(self._record, f"begun {ids}\n".encode())
        annotated = await super().__call__(batch)
        os.write(self._record, f"done {ids}\n".encode())
        return annotated


def record_of(output: Path) -> Path:
    """Where `Recorded` writes for a run into `output`: not there, it may be full."""
    return output.with_name(output.name + ".record")


def drive(world: str, output: str) -> int:
    """The command of a round; the exit code is that of `python -m pipeline annotate`."""
    try:
        annotate(configured(Path(world), Path(output)), Recorded)
    except ToolformerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def configured(world: Path, output: Path) -> Any:
    """The configuration of every run."""
    return annotating.config(world, output, actors=ACTORS, texts_per_batch=TEXTS_PER_BATCH)


def make_world(folder: Path, texts: int) -> Path:
    """A model, prompts, and a corpus of about so many texts."""
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", SHARDS, texts // SHARDS - 1)  # and one broken line in each
    return folder


@dataclass(frozen=True, kw_only=True)
class Round:
    """What happened, and what came of it."""

    kind: str
    moment: str
    starts: int
    """How often the command was given."""
    missing: int
    twice: int
    different: int
    again: int
    """Texts whose annotation had ended, but whose row was lost."""
    begun_again: int
    """The same and those that were being worked on."""
    allowed: int
    """SHARE_AGAIN of the texts, or a batch per actor if that is more; of those begun, BATCHES_IN_FLIGHT times
    as many."""
    seconds: float
    said: str = ""
    """The last line of the run that the fault ended."""

    @property
    def passed(self) -> bool:
        """Whether it is as if nothing had happened."""
        sound = not (self.missing or self.twice or self.different)
        return sound and self.again <= self.allowed and self.begun_again <= BATCHES_IN_FLIGHT * self.allowed

    def __str__(self) -> str:
        return (
            f"{self.kind:<8}{self.moment:<34}{self.starts:>6}{self.missing:>8}{self.twice:>6}"
            f"{self.different:>8}{self.again:>6}{self.begun_again:>6}{self.allowed:>8}{self.seconds:>8.1f}  "
            f"{'passed' if self.passed else 'FAILED'}"
        )


HEADER = (
    f"{'kind':<8}{'moment':<34}{'starts':>6}{'missing':>8}{'twice':>6}{'differ':>8}{'again':>6}{'begun':>6}"
    f"{'allowed':>8}{'s':>8}"
)


class Run:
    """The command, started once."""

    def __init__(self, cluster: LocalCluster, world: Path, output: Path) -> None:
        self.output = output
        record_of(output).mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        code = f"import sys; from bench.faults import drive; sys.exit(drive({str(world)!r}, {str(output)!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
        )

    def wait_for_files(self, number: int) -> None:
        """Until so many are written, or the run has ended."""
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and len(parquet_files(self.output / ROWS)) < number:
            if time.monotonic() > until:
                raise FaultError(f"{number} files did not come in {PATIENCE_S:.0f} s: {self.said()}")
            time.sleep(0.02)

    def wait(self) -> int:
        """The exit code. FaultError if it does not end."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"hangs: {self.said()}") from error

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """The last line it printed."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()


class Trial:
    """A cluster, a world, the rows that an undisturbed run leaves; `round` for as many faults as wanted."""

    def __init__(self, folder: Path, texts: int) -> None:
        self._folder = folder
        self.undisturbed = folder / "undisturbed"
        """The output that all others must equal."""
        self._world = make_world(folder / "world", texts)
        self._rounds = 0
        self._cluster = LocalCluster([_NODE] * ACTORS)

    def __enter__(self) -> Trial:
        self._cluster.__enter__()
        try:
            with self._running(self.undisturbed) as run:
                if run.wait():
                    raise FaultError(f"the undisturbed run failed: {run.said()}")
        except BaseException:
            self._cluster.stop()
            raise
        self.rows = rows_of(self.undisturbed)
        self.files = len(parquet_files(self.undisturbed / ROWS))
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.stop()

    @contextmanager
    def _running(self, output: Path) -> Iterator[Run]:
        run = Run(self._cluster, self._world, output)
        try:
            yield run
        finally:
            run.close()

    def round(self, kind: str, chance: random.Random) -> Round:
        """One fault of `kind` at a moment that `chance` decides, and the same command until it ends well."""
        self._rounds += 1
        output = self._folder / f"round{self._rounds}"
        output.mkdir()
        began = time.monotonic()
        with self._small_disk(output, chance) if kind == "disk" else nullcontext() as room:
            with self._running(output) as run:
                moment = room.moment if room else self._strike(kind, run, chance)
                code, said = run.wait(), run.said()
            if room:
                room.make()
            if kind == "twice":
                code = 0  # one of the two has done it
            starts, last = 1, said
            while code:
                if starts == STARTS:
                    raise FaultError(f"{kind}, {moment}: {starts} starts, and still: {last}")
                starts += 1
                with self._running(output) as run:
                    code, last = run.wait(), run.said()
            return self._judge(kind, moment, starts, output, time.monotonic() - began, said)

    def _strike(self, kind: str, run: Run, chance: random.Random) -> str:
        """Do it after a number of files and a moment; what there is to say about it."""
        if kind == "twice":
            return self._twice(run)
        files, pause_s = chance.randrange(self.files), chance.random()
        run.wait_for_files(files)
        time.sleep(pause_s)
        ended = ", too late" * (run.process.poll() is not None)
        moment = f"{files} files + {1e3 * pause_s:.0f} ms{ended}"
        if kind in ("actor", "both"):
            moment += _kill_actor(run.output, chance)
            if kind == "both":
                time.sleep(chance.uniform(1, 5))
                run.kill()
        elif kind == "node":
            name = chance.choice(sorted(self._cluster.nodes))
            self._cluster.kill_node(name)
            self._cluster.add_node(_NODE)
        elif kind == "restart":
            self._cluster.stop()
            self._cluster.__enter__()
        else:
            run.kill()
            if kind == "half":
                _cut(run.output / ROWS, chance)
        return moment

    def _twice(self, run: Run) -> str:
        """Start it again at once; which of the two comes first is open."""
        with self._running(run.output) as second:
            runs = [run, second]
            refused = [one for one in runs if one.wait()]
            if len(refused) != 1 or "is writing here" not in refused[0].said():
                raise FaultError(f"not one of two was refused: {[one.said() for one in runs]}")
        return f"{'first' if refused == [run] else 'second'} was refused"

    @contextmanager
    def _small_disk(self, output: Path, chance: random.Random) -> Iterator[_Room]:
        """A file system of its own for `output`, with room for a part of the rows."""
        files = chance.randrange(self.files // 2)
        whole = sum(_blocks(path) for path in parquet_files(self.undisturbed / ROWS))
        room = _Room(output, _START_BYTES + whole * files // self.files, f"room for {files} files")
        room.mount()
        try:
            yield room
        finally:
            subprocess.run(["umount", "--lazy", str(output)], check=True)

    def _judge(self, kind: str, moment: str, starts: int, output: Path, seconds: float, said: str) -> Round:
        if read_manifest(output).state != "finished":
            raise FaultError(f"{kind}, {moment}: ended well, but {output / MANIFEST} is not finished")
        rows, expected = rows_of(output), self.rows
        ids, wanted = rows["text_id"].to_pylist(), expected["text_id"].to_pylist()
        twice = len(ids) - len(set(ids))
        missing = len(set(wanted) - set(ids))
        different = 0
        if not twice and not missing:
            pairs = zip(rows.to_pylist(), expected.to_pylist(), strict=True)
            different = sum(one != other for one, other in pairs)
        again, begun_again = (repeated(output, word) for word in ("done", "begun"))
        allowed = max(int(SHARE_AGAIN * len(wanted)), ACTORS * TEXTS_PER_BATCH)
        if kind == "half":
            allowed += TEXTS_PER_BATCH  # of the file that was cut
        return Round(
            kind=kind,
            moment=moment,
            starts=starts,
            missing=missing,
            twice=twice,
            different=different,
            again=again,
            begun_again=begun_again,
            allowed=allowed,
            seconds=round(seconds, 1),
            said=said[:300],
        )


@dataclass(frozen=True)
class _Room:
    """A tmpfs that is too small, until `make`."""

    folder: Path
    size: int
    moment: str

    def mount(self) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def make(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=1G", str(self.folder)], check=True)


def _kill_actor(output: Path, chance: random.Random) -> str:
    records = record_of(output).iterdir()
    actors = sorted(pid for pid in (int(path.name) for path in records) if psutil.pid_exists(pid))
    if not actors:
        return ", no actor yet"
    os.kill(chance.choice(actors), signal.SIGKILL)
    return ""


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _Room(Path(folder), 2**20, "").mount()
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _blocks(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096


def _cut(rows: Path, chance: random.Random) -> None:
    """What a crash of the machine leaves: a file without its end, and one that never got its name."""
    if files := parquet_files(rows):
        file = chance.choice(files)
        os.truncate(file, chance.randrange(file.stat().st_size))
        (rows / (file.name + ".part")).write_bytes(b"PAR1")


def rows_of(output: Path) -> pa.Table:
    """All rows, by id."""
    return pq.read_table(output / ROWS).sort_by("text_id")


def repeated(output: Path, word: str) -> int:
    """How many more texts than there are were `begun` or `done`, over all starts."""
    lines = (line for path in record_of(output).iterdir() for line in path.read_text().splitlines())
    times = Counter(one for line in lines if line.startswith(word) for one in line.split()[1:])
    return sum(times.values()) - len(times)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Kill what can be killed, and compare the rows.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--texts", type=int, default=603)
    arguments = parser.parse_args(argv)
    kinds = [kind for kind in arguments.kinds if kind != "disk" or can_mount()]
    for kind in sorted(set(arguments.kinds).difference(kinds)):
        print(f"{kind} is left out: no file system can be mounted here")
    rounds: list[Round] = []
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="faults") as folder,
        Trial(Path(folder), arguments.texts) as trial,
    ):
        print(HEADER)
        for number in range(arguments.rounds):
            chance = random.Random(f"{arguments.seed} {number}")
            try:
                rounds.append(trial.round(kinds[number % len(kinds)], chance))
            except FaultError as error:
                failures.append(str(error))
                print(f"FAILED  {error}", flush=True)
            else:
                print(rounds[-1], flush=True)
    passed = sum(one.passed for one in rounds)
    print(f"{passed} of {arguments.rounds} rounds passed")
    measured = {"rounds": [{**asdict(one), "passed": one.passed} for one in rounds], "failures": failures}
    print(results.write("faults", vars(arguments), measured))
    return int(passed < arguments.rounds)


if __name__ == "__main__":
    sys.exit(main())
