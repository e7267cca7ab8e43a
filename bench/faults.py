"""Fault injection: annotate on a real cluster with one fault, and compare with a clean run.

    python -m bench.faults [--rounds 20] [--seed 0] [--kinds driver node …] [--texts 603]

Each round starts `annotate` (small real model; calculator and calendar on Ray Serve; two actors on
the two nodes of a cluster.local), injects one fault (KINDS) at a seeded moment, and repeats the
command until it succeeds. A round passes if the rows are bit for bit those of the clean run, in any
order, with none missing and none twice, and if few texts were annotated again: at most `allowed`
whose annotation had ended, and twice as many that were being annotated. Out: a line per round, and
runs/bench/faults.json; exit code 1 if a round failed. The kind `disk` needs the right to mount a
tmpfs, and is skipped without it.
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
from bench.fixtures import small_run
from cluster.local import ROOT, LocalCluster
from pipeline.annotation.annotator_actor import AnnotateBatch
from pipeline.annotation.run import BATCHES_IN_FLIGHT, annotate
from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.errors import ToolformerError
from tools_service.base.files import PART

KINDS = {
    "actor": "SIGKILL to the process of an annotating actor",
    "node": "SIGKILL to all processes of a node; another node joins",
    "driver": "SIGKILL to the process that was started",
    "restart": "SIGKILL to every node, the head too; a new cluster",
    "disk": "the output's file system is full until the command has ended",
    "both": "SIGKILL to an annotating actor, and some seconds later to the driver",
    "half": "SIGKILL to the driver; a file cut at a random byte, another left unfinished",
    "twice": "the same command, started twice at once",
}
ACTORS, TEXTS_PER_BATCH, FILES = 2, 8, 3
SHARE_AGAIN = 0.02
MAX_STARTS = 4
TIMEOUT_S = 420.0
_NODE = "cpus=4"
_START_BYTES = 64 * 2**10  # manifest.json, the lock and the log


class FaultError(Exception):
    """A round could not be carried out, so it says nothing about its kind of fault."""


class RecordedBatch(AnnotateBatch):
    """Records which texts it begins and ends, in a file per process that survives a kill."""

    def __init__(self, config: Any, tools: Any, progress: Any) -> None:
        super().__init__(config, tools, progress)
        file = record_folder(config.output) / str(os.getpid())
        self._record = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        ids = " ".join(map(str, batch["text_id"].to_pylist()))
        if self._refused is None:
            os.write(self._record, f"begun {ids}\n".encode())
        annotated = await super().__call__(batch)
        os.write(self._record, f"done {ids}\n".encode())
        return annotated


def record_folder(output: Path) -> Path:
    """Where `RecordedBatch` writes for a run into `output`, on another disk than `output`."""
    return output.with_name(output.name + ".record")


def run_annotate(world: str, output: str) -> int:
    """The command of a round. The exit code is that of `python -m pipeline annotate`."""
    try:
        annotate(configuration(Path(world), Path(output)), RecordedBatch)
    except ToolformerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def configuration(world: Path, output: Path) -> Any:
    """The configuration of every run."""
    return small_run.config(world, output, actors=ACTORS, texts_per_batch=TEXTS_PER_BATCH)


def make_world(folder: Path, texts: int) -> Path:
    """Write a model, prompts, and a corpus of about `texts` texts."""
    small_run.save_model(folder / "model")
    small_run.write_prompts(folder / "prompts")
    small_run.write_corpus(folder / "pages", FILES, texts // FILES - 1)  # and one broken line in each file
    return folder


@dataclass(frozen=True, kw_only=True)
class Round:
    """One fault and its consequences."""

    kind: str
    moment: str
    starts: int
    """How often the command was started."""
    missing: int
    twice: int
    different: int
    again: int
    """Texts whose annotation had ended, but whose row was lost."""
    begun_again: int
    """The same, and texts whose annotation was under way."""
    allowed: int
    """Limit of `again`: SHARE_AGAIN of the texts, or a batch per actor if that is more. The limit
    of `begun_again` is BATCHES_IN_FLIGHT times as high."""
    seconds: float
    last_line: str = ""
    """What the run that the fault ended printed last."""

    @property
    def passed(self) -> bool:
        """Whether the output is that of a clean run, and little work was lost."""
        same_rows = not (self.missing or self.twice or self.different)
        return (
            same_rows and self.again <= self.allowed and self.begun_again <= BATCHES_IN_FLIGHT * self.allowed
        )

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


class AnnotateProcess:
    """The command of a round, in a process."""

    def __init__(self, cluster: LocalCluster, world: Path, output: Path) -> None:
        self.output = output
        record_folder(output).mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        call = f"run_annotate({str(world)!r}, {str(output)!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; from bench.faults import run_annotate; sys.exit({call})"],
            cwd=ROOT,
            env=cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
        )

    def wait_for_files(self, number: int) -> None:
        """Wait for `number` files or the end of the process. FaultError after TIMEOUT_S."""
        until = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None and len(parquet_files(self.output / ROWS)) < number:
            if time.monotonic() > until:
                raise FaultError(f"fewer than {number} files after {TIMEOUT_S:.0f} s: {self.last_line()}")
            time.sleep(0.02)

    def wait(self) -> int:
        """The exit code. FaultError after TIMEOUT_S."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"hangs: {self.last_line()}") from error

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def last_line(self) -> str:
        """The last line it printed."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()


class FaultTest:
    """A cluster, a world, and the rows of a clean run. Each call of `round` injects one fault."""

    def __init__(self, folder: Path, texts: int) -> None:
        self._folder = folder
        self.clean_output = folder / "clean"
        """The output that all others must equal."""
        self._world = make_world(folder / "world", texts)
        self._rounds = 0
        self._cluster = LocalCluster([_NODE] * ACTORS)

    def __enter__(self) -> FaultTest:
        self._cluster.__enter__()
        try:
            with self._started(self.clean_output) as run:
                if run.wait():
                    raise FaultError(f"the clean run failed: {run.last_line()}")
        except BaseException:
            self._cluster.stop()
            raise
        self.rows = read_sorted(self.clean_output)
        self.files = len(parquet_files(self.clean_output / ROWS))
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.stop()

    @contextmanager
    def _started(self, output: Path) -> Iterator[AnnotateProcess]:
        run = AnnotateProcess(self._cluster, self._world, output)
        try:
            yield run
        finally:
            run.close()

    def round(self, kind: str, rng: random.Random) -> Round:
        """Inject one fault of `kind` at a moment drawn from `rng`, and repeat the command until it
        succeeds.

        FaultError if it does not after MAX_STARTS starts.
        """
        self._rounds += 1
        output = self._folder / f"round{self._rounds}"
        output.mkdir()
        began = time.monotonic()
        with self._small_disk(output, rng) if kind == "disk" else nullcontext() as disk:
            with self._started(output) as run:
                moment = disk.moment if disk else self._inject(kind, run, rng)
                code, last_line = run.wait(), run.last_line()
            if disk:
                disk.enlarge()
            if kind == "twice":
                code = 0  # one of the two processes has finished the work
            starts, latest = 1, last_line
            while code:
                if starts == MAX_STARTS:
                    raise FaultError(f"{kind}, {moment}: {starts} starts, and the last failed: {latest}")
                starts += 1
                with self._started(output) as run:
                    code, latest = run.wait(), run.last_line()
            seconds = time.monotonic() - began
            return self._compare(
                output, kind=kind, moment=moment, starts=starts, seconds=seconds, line=last_line
            )

    def _inject(self, kind: str, run: AnnotateProcess, rng: random.Random) -> str:
        """Inject the fault at a random moment; returns a description of this moment."""
        if kind == "twice":
            return self._start_again(run)
        files, pause_s = rng.randrange(self.files), rng.random()
        run.wait_for_files(files)
        time.sleep(pause_s)
        ended = ", too late" * (run.process.poll() is not None)
        moment = f"{files} files + {1e3 * pause_s:.0f} ms{ended}"
        if kind in ("actor", "both"):
            moment += _kill_actor(run.output, rng)
            if kind == "both":
                time.sleep(rng.uniform(1, 5))
                run.kill()
        elif kind == "node":
            name = rng.choice(sorted(self._cluster.nodes))
            self._cluster.kill_node(name)
            self._cluster.add_node(_NODE)
        elif kind == "restart":
            self._cluster.stop()
            self._cluster.__enter__()
        else:
            run.kill()
            if kind == "half":
                _cut_file(run.output / ROWS, rng)
        return moment

    def _start_again(self, run: AnnotateProcess) -> str:
        """Start the command a second time. Exactly one of the two processes must be refused."""
        with self._started(run.output) as second:
            runs = [run, second]
            refused = [process for process in runs if process.wait()]
            if len(refused) != 1 or "is writing here" not in refused[0].last_line():
                lines = [process.last_line() for process in runs]
                raise FaultError(f"exactly one process should have been refused: {lines}")
        return f"{'first' if refused == [run] else 'second'} was refused"

    @contextmanager
    def _small_disk(self, output: Path, rng: random.Random) -> Iterator[_SmallDisk]:
        """A file system for `output` with room for a part of the rows."""
        files = rng.randrange(self.files // 2)
        bytes_of_rows = sum(_disk_bytes(path) for path in parquet_files(self.clean_output / ROWS))
        size = _START_BYTES + bytes_of_rows * files // self.files
        disk = _SmallDisk(output, size, f"room for {files} files")
        disk.mount()
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", str(output)], check=True)

    def _compare(
        self, output: Path, *, kind: str, moment: str, starts: int, seconds: float, line: str
    ) -> Round:
        if read_manifest(output).state != "finished":
            raise FaultError(f"{kind}, {moment}: exit code 0, but {output / MANIFEST} is not finished")
        rows = read_sorted(output)
        ids, expected_ids = rows["text_id"].to_pylist(), self.rows["text_id"].to_pylist()
        twice = len(ids) - len(set(ids))
        missing = len(set(expected_ids) - set(ids))
        different = 0
        if not twice and not missing:
            pairs = zip(rows.to_pylist(), self.rows.to_pylist(), strict=True)
            different = sum(row != expected for row, expected in pairs)
        allowed = max(int(SHARE_AGAIN * len(expected_ids)), ACTORS * TEXTS_PER_BATCH)
        if kind == "half":
            allowed += TEXTS_PER_BATCH  # those of the file that was cut
        return Round(
            kind=kind,
            moment=moment,
            starts=starts,
            missing=missing,
            twice=twice,
            different=different,
            again=repetitions(output, "done"),
            begun_again=repetitions(output, "begun"),
            allowed=allowed,
            seconds=round(seconds, 1),
            last_line=line[:300],
        )


@dataclass(frozen=True)
class _SmallDisk:
    """A tmpfs that is too small until `enlarge` is called."""

    folder: Path
    size: int
    moment: str

    def mount(self) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def enlarge(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=1G", str(self.folder)], check=True)


def _kill_actor(output: Path, rng: random.Random) -> str:
    files = record_folder(output).iterdir()
    actors = sorted(pid for pid in (int(path.name) for path in files) if psutil.pid_exists(pid))
    if not actors:
        return ", no actor yet"
    os.kill(rng.choice(actors), signal.SIGKILL)
    return ""


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _SmallDisk(Path(folder), 2**20, "").mount()
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _disk_bytes(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096


def _cut_file(rows: Path, rng: random.Random) -> None:
    """Do what a crash of the machine does: cut a file, and leave one under a temporary name."""
    if files := parquet_files(rows):
        file = rng.choice(files)
        os.truncate(file, rng.randrange(file.stat().st_size))
        (rows / (file.name + PART)).write_bytes(b"PAR1")


def read_sorted(output: Path) -> pa.Table:
    """All rows, sorted by id."""
    return pq.read_table(output / ROWS).sort_by("text_id")


def repetitions(output: Path, event: str) -> int:
    """How often texts were `begun` or `done` again, over all starts."""
    lines = (line for path in record_folder(output).iterdir() for line in path.read_text().splitlines())
    times = Counter(text_id for line in lines if line.startswith(event) for text_id in line.split()[1:])
    return sum(times.values()) - len(times)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Inject faults into annotate, and compare the rows.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--texts", type=int, default=603)
    args = parser.parse_args(argv)
    kinds = [kind for kind in args.kinds if kind != "disk" or can_mount()]
    for kind in sorted(set(args.kinds).difference(kinds)):
        print(f"{kind} is skipped: no file system can be mounted here")
    rounds: list[Round] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults") as folder, FaultTest(Path(folder), args.texts) as test:
        print(HEADER)
        for number in range(args.rounds):
            rng = random.Random(f"{args.seed} {number}")
            try:
                rounds.append(test.round(kinds[number % len(kinds)], rng))
            except FaultError as error:
                failures.append(str(error))
                print(f"FAILED  {error}", flush=True)
            else:
                print(rounds[-1], flush=True)
    passed = sum(each.passed for each in rounds)
    print(f"{passed} of {args.rounds} rounds passed")
    measured = {"rounds": [{**asdict(each), "passed": each.passed} for each in rounds], "failures": failures}
    print(results.write("faults", vars(args), measured))
    return int(passed < args.rounds)


if __name__ == "__main__":
    sys.exit(main())
