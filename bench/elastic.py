"""Elastic annotation: nodes of one simulated GPU join a run one after the other, and two are killed.

    python -m bench.scaling --elastic [--rounds 5] [--seconds 8] [--batches 50] [--every 40]

A round starts `annotate` with ray.max_actors on a cluster.local that has no GPU yet. Three nodes join,
`--every` seconds apart, then two of them, drawn by the round's number, are killed. The rows and their
files must be those of a run on three nodes that nothing happened to. Actors hold their GPU by sleeping, as
in bench/simulated_gpus.py. The table has a line for each time during which the number of living actors stayed
the same: the texts a second that their GPUs were busy for, beside the ideal of as many actors. Time
counts from when an actor is ready, and from the first batch on: before it, processes that read are
starting. How long each node waits for its actor stands above the table.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from bench import results, simulated_gpus
from cluster.local import LOOPBACK_ONLY, ROOT, LocalCluster
from pipeline.annotation.actor_reports import Reporter
from pipeline.annotation.run import annotate
from pipeline.base.config import AnnotateConfig
from pipeline.storage.row_files import ROWS, parquet_files
from pipeline.syntax.tokenizer import load_tokenizer

NODES = 3
KILLED = 2
MIN_SHARE = 0.90
_TOOLS_NODE, _GPU_NODE = "cpus=10", "cpus=4,gpus=1"
_POLL_S = 0.2


class ElasticBatch(simulated_gpus.TimedBatch):
    """TimedBatch without waiting for others; it notes when each use of the GPU begins and ends."""

    def __init__(self, config: AnnotateConfig, tools: Any, progress: Any) -> None:
        self._tools, self._progress, self._rows = tools, progress, config.output / ROWS
        reporter = Reporter(progress, config.ray.gpus_per_actor)
        load_tokenizer(config.model.path)
        self._seconds = float((config.output.parent / simulated_gpus.SECONDS).read_text(encoding="ascii"))
        self._times = Path(os.devnull).open("w", encoding="ascii")  # noqa: SIM115
        file = simulated_gpus.times_folder(config.output) / str(os.getpid())
        self._spans = file.open("a", encoding="ascii")
        self._gpu = asyncio.Lock()
        print(ray.get_runtime_context().get_node_id(), time.monotonic(), file=self._spans, flush=True)
        reporter.ready()

    async def _use_gpu(self) -> tuple[float, float]:
        async with self._gpu:
            began = time.monotonic()
            print(began, file=self._spans, end=" ", flush=True)
            await asyncio.sleep(self._seconds / 2)
            ended = time.monotonic()
            print(ended, file=self._spans, flush=True)
            return began, ended


def run_annotate(world: str, output: str) -> None:
    """The measured command."""
    config = simulated_gpus.configuration(Path(world), Path(output), 1)
    elastic = config.ray.model_copy(update={"max_actors": NODES + 1})  # one more than there will be GPUs
    annotate(config.model_copy(update={"ray": elastic}), ElasticBatch)


@dataclass(slots=True)
class ActorLife:
    """One process of an actor, in seconds of time.monotonic."""

    node: str
    ready: float
    ended: float = 0.0  # its last use of the GPU, or its death
    spans: list[tuple[float, float]] = field(default_factory=list)


def lives(folder: Path, killed: dict[str, float]) -> list[ActorLife]:
    """What the actors noted; `killed` has the nodes that were killed, and when."""
    found = []
    for path in sorted(folder.iterdir()):
        first, *lines = path.read_text(encoding="ascii").splitlines()
        node, ready = first.split()
        life = ActorLife(node, float(ready))
        for line in lines:
            began, *ended = map(float, line.split())
            if ended or node in killed:
                life.spans.append((began, ended[0] if ended else killed[node]))
        life.ended = killed.get(node) or max((ended for _, ended in life.spans), default=life.ready)
        found.append(life)
    return found


@dataclass(frozen=True, slots=True)
class Window:
    """A time during which the number of living actors stayed the same."""

    seconds: float
    actors: int
    busy: float
    """Share of the time of the actors' GPUs that they were busy."""


def windows(actors: Sequence[ActorLife], at_least_s: float) -> list[Window]:
    """The windows of at least that length, in their order, from the start of the first batch."""
    first = min((began for actor in actors for began, _ in actor.spans), default=0.0)
    edges = sorted({max(first, edge) for actor in actors for edge in (actor.ready, actor.ended)})
    found = []
    for since, until in pairwise(edges):
        alive = [actor for actor in actors if actor.ready <= since and actor.ended >= until]
        if alive and until - since >= at_least_s:
            spans = [span for actor in alive for span in actor.spans]
            busy_s = sum(max(0.0, min(ended, until) - max(began, since)) for began, ended in spans)
            found.append(Window(until - since, len(alive), busy_s / len(alive) / (until - since)))
    return found


@dataclass(frozen=True, slots=True)
class Round:
    """What a round found."""

    number: int
    wall_s: float
    windows: list[Window]
    waits_s: list[float]
    """From each node's start to its first ready actor."""
    rows_equal: bool


def annotation_process(cluster: LocalCluster, world: Path, output: Path) -> subprocess.Popen[bytes]:
    """`run_annotate` in a process of its own."""
    simulated_gpus.times_folder(output).mkdir()
    call = f"from bench.elastic import run_annotate; run_annotate({str(world)!r}, {str(output)!r})"
    environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, env=environment)


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process if the block fails; require that it succeeds."""
    try:
        yield
        if process.wait():
            raise SystemExit("annotate failed: see above")
    finally:
        process.kill()
        process.wait()


def sleep_until(moment: float, process: subprocess.Popen[bytes]) -> None:
    """SystemExit if the process ends before."""
    while time.monotonic() < moment:
        if process.poll() is not None:
            raise SystemExit("the run ended before the last node was killed: give it more --batches")
        time.sleep(_POLL_S)


def play(
    number: int, world: Path, output: Path, every_s: float
) -> tuple[float, list[ActorLife], list[float]]:
    """One round: its duration, what the actors did, and how long each node waited for its actor."""
    rng, killed, joined = random.Random(number), dict[str, float](), dict[str, float]()
    with LocalCluster([_TOOLS_NODE]) as cluster:
        began = time.monotonic()
        process = annotation_process(cluster, world, output)
        with running(process):
            while not (output / ROWS).exists():  # the run has begun: now it waits for a GPU
                sleep_until(time.monotonic() + _POLL_S, process)
            moment = time.monotonic() + every_s / 2
            for _ in range(NODES):
                sleep_until(moment, process)
                node = cluster.add_node(_GPU_NODE)
                joined[node.node_id] = time.monotonic()
                moment = time.monotonic() + every_s
            names = [name for name, node in cluster.nodes.items() if node.node_id in joined]
            for name in rng.sample(names, KILLED):
                sleep_until(moment, process)
                killed[cluster.nodes[name].node_id] = time.monotonic()
                cluster.kill_node(name)
                moment = time.monotonic() + every_s
        wall_s = time.monotonic() - began
    actors = lives(simulated_gpus.times_folder(output), killed)
    ready = {node: min(actor.ready for actor in actors if actor.node == node) for node in joined}
    return wall_s, actors, [ready[node] - joined[node] for node in joined]


def rows_of(output: Path) -> tuple[list[str], pa.Table]:
    """The names of the row files, which are digests of the batches' ids, and the rows."""
    names = [path.name for path in parquet_files(output / ROWS)]
    return names, pq.read_table(output / ROWS).sort_by("text_id")


def run_rounds(rounds: int, seconds: float, batches: int, every_s: float) -> int:
    """The exit code: 1 if rows differ or a window has less than MIN_SHARE of its ideal."""
    os.environ |= LOOPBACK_ONLY
    done, missed = [], []
    with tempfile.TemporaryDirectory(prefix="elastic") as folder:
        world = Path(folder)
        simulated_gpus.write_pages(world / "pages", batches * simulated_gpus.TEXTS_PER_BATCH)
        (world / simulated_gpus.SECONDS).write_text("0.5", encoding="ascii")
        with LocalCluster([_TOOLS_NODE, *[_GPU_NODE] * NODES]) as cluster:
            process = annotation_process(cluster, world, world / "undisturbed")
            with running(process):
                process.wait()
        (world / simulated_gpus.SECONDS).write_text(str(seconds), encoding="ascii")
        expected = rows_of(world / "undisturbed")
        print(f"undisturbed: {expected[1].num_rows:,} rows in {len(expected[0])} files", flush=True)
        for number in range(1, rounds + 1):
            output = world / f"round{number}"
            wall_s, actors, waits_s = play(number, world, output, every_s)
            names, rows = rows_of(output)
            equal = names == expected[0] and rows.equals(expected[1])
            this = Round(number, wall_s, windows(actors, 2 * seconds), waits_s, equal)
            done.append(this)
            missed += print_round(this, simulated_gpus.TEXTS_PER_BATCH / seconds)
    print("\n".join(f"missed: {limit}" for limit in missed) or "all limits met")
    settings = {"rounds": rounds, "seconds": seconds, "batches": batches, "every": every_s}
    print(results.write("elastic", settings, {"rounds": list(map(asdict, done)), "missed": missed}))
    return int(bool(missed))


def print_round(this: Round, texts_per_s: float) -> list[str]:
    """Print a round; returns the limits that it misses. An actor has `texts_per_s`."""
    waits = ", ".join(f"{wait:.0f} s" for wait in this.waits_s)
    rows = "rows equal" if this.rows_equal else "rows DIFFER"
    print(f"round {this.number}: {this.wall_s:.0f} s, {rows}; from a node to its ready actor: {waits}")
    print(f"{'seconds':>10}{'actors':>8}{'texts/s':>10}{'ideal':>8}{'share':>8}")
    missed = [] if this.rows_equal else [f"round {this.number}: rows differ"]
    for window in this.windows:
        ideal = window.actors * texts_per_s
        print(f"{window.seconds:>10.1f}{window.actors:>8}{window.busy * ideal:>10.1f}{ideal:>8.1f}", end="")
        print(f"{window.busy:>8.1%}", flush=True)
        if window.busy < MIN_SHARE:
            missed.append(f"round {this.number}: {window.busy:.1%} with {window.actors} actors")
    return missed
