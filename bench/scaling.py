"""How annotation scales: the real graph on 1 to 32 simulated GPU actors.

    python -m bench.scaling [--actors 1 2 4 8 16 32] [--seconds 60] [--batches 4]
    python -m bench.scaling --elastic [--rounds 5] [--seconds 8] [--batches 50]     # bench/elastic.py

Everything is what `python -m pipeline annotate` runs (reading, batches, scheduling, calls to the
tools on Ray Serve, writing, progress), on a cluster.local. Only the actors are simulated, and they
send two small messages a batch less: they record no metrics, and do not report the texts that they
begin. `TimedBatch` holds its GPU for `--seconds` a batch by sleeping, half before the calls and
half after, and sends calls for every text (CALLS) to calculator, calendar and search. Two batches
share an actor's GPU, as in production. (`plan` expects 30 s on an A100 for 64 web texts of 400
tokens with GPT-J, under calculator and calendar alone.)

All actors are ready before the first one starts, because 32 processes that start on a few cores are
not what is measured. They start one after the other within the time of a batch, like actors that
have run for a while. The share of ideal throughput is the share of time that the GPUs were busy,
from the last actor's start until the first actor has no batch left. Also reported: batches ×
seconds / actors over the time from the first batch's start to the last one's end, and over that of
the whole command; CPU load; the peak memory of the driver and of the object stores; and the
driver's memory with a corpus ten times as large. Out: a table, and runs/bench/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from bench import results
from bench.elastic import run_rounds
from bench.simulated_gpus import (
    CALLS,
    SECONDS,
    TEXTS_PER_BATCH,
    TimedBatch,
    configuration,
    times_folder,
    write_pages,
)
from cluster.local import LOOPBACK_ONLY, ROOT, LocalCluster
from pipeline.annotation.run import annotate

GPUS_PER_NODE = 8
MIN_SHARES = {16: 0.95, 32: 0.90}
CORPUS_FACTOR = 10
MAX_GROWTH = 0.10
_SAMPLE_INTERVAL_S = 2.0


def run_annotate(world: str, output: str, actors: int) -> None:
    """The measured command. Prints its time, its memory and the object stores' as JSON."""
    began = time.monotonic()
    with _sampled_stores() as samples:
        annotate(configuration(Path(world), Path(output), actors), TimedBatch)
    wall_s = time.monotonic() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    store_mib = max(samples, default=0.0) / 2**20
    print(json.dumps({"wall_s": wall_s, "driver_mib": memory, "store_mib": store_mib}))


@contextmanager
def _sampled_stores() -> Iterator[list[float]]:
    """The bytes in all object stores, sampled every few seconds during the block."""
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_INTERVAL_S):
            samples.append(_store_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _store_bytes() -> float:
    """From the nodes' metrics, which are some seconds old."""
    if not ray.is_initialized():
        return 0.0
    total = 0.0
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:  # not up yet, or busy
            continue
        total += sum(float(line.split()[-1]) for line in lines if line.startswith("ray_object_store_memory{"))
    return total


@dataclass(frozen=True, kw_only=True)
class ScalingRun:
    """The measurements of one run."""

    actors: int
    batches: int
    seconds: float
    """GPU time of a batch."""
    share: float
    """Share of the ideal throughput while all actors had work."""
    steady_s: float
    """How long all actors had work."""
    share_of_batches: float
    """Share of the ideal throughput from the first batch's start to the last one's end."""
    share_with_start: float
    """Share of the ideal throughput from the start of the command to its end."""
    wall_s: float
    cpu_load: float
    """Share of all cores that the whole machine used during the run."""
    calls_per_s: float
    calls_lost: int
    """Calls lost because a tool was late, overloaded or gone."""
    driver_mib: float
    store_mib: float

    def __str__(self) -> str:
        return (
            f"{self.actors:>6}{self.batches:>9}{self.share:>9.1%}{self.steady_s:>10.0f}"
            f"{self.share_of_batches:>10.1%}{self.share_with_start:>12.1%}{self.wall_s:>9.1f}{self.cpu_load:>7.0%}"
            f"{self.calls_per_s:>9.0f}{self.calls_lost:>6}{self.driver_mib:>12.0f}{self.store_mib:>11.1f}"
        )


HEADER = (
    f"{'actors':>6}{'batches':>9}{'share':>9}{'steady s':>10}{'all':>10}{'with start':>12}{'wall s':>9}"
    f"{'CPU':>7}{'calls/s':>9}{'lost':>6}{'driver MiB':>12}{'store MiB':>11}"
)


def measure(cluster: LocalCluster, folder: Path, actors: int, batches: int, seconds: float) -> ScalingRun:
    """One run with `batches` batches per actor."""
    world = folder / f"{actors}x{batches}"
    write_pages(world / "pages", actors * batches * TEXTS_PER_BATCH)
    output = world / "out"
    times_folder(output).mkdir(parents=True)
    (world / SECONDS).write_text(str(seconds), encoding="ascii")
    call = f"run_annotate({str(world)!r}, {str(output)!r}, {actors})"
    before, began = psutil.cpu_times(), time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-c", f"from bench.scaling import run_annotate; {call}"],
        cwd=ROOT,
        env=cluster.environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cores_s = (time.monotonic() - began) * (os.cpu_count() or 1)
    load = cpu_load(before, psutil.cpu_times(), cores_s)
    return summary(output, actors, seconds, load, json.loads(finished.stdout.splitlines()[-1]))


def cpu_load(before: Any, after: Any, cores_s: float) -> float:
    """Share of `cores_s`, the seconds of all cores together, in which a core was not idle."""
    idle: float = after.idle - before.idle + after.iowait - before.iowait
    return 1 - idle / cores_s


def summary(output: Path, actors: int, seconds: float, load: float, reported: dict[str, float]) -> ScalingRun:
    """The measurements, from the files that the actors wrote and what the command `reported`."""
    files = [path.read_text(encoding="ascii").splitlines() for path in times_folder(output).iterdir()]
    of_actors = [[[float(number) for number in line.split()] for line in lines] for lines in files]
    batches = [batch for of_actor in of_actors for batch in of_actor]
    spans = [[span for batch in of_actor for span in (batch[:2], batch[2:4])] for of_actor in of_actors]
    share, steady_s = busy_share(spans)
    ideal_s = len(batches) * seconds / actors
    took_s = max(batch[3] for batch in batches) - min(batch[0] for batch in batches)
    return ScalingRun(
        actors=actors,
        batches=len(batches),
        seconds=seconds,
        share=share,
        steady_s=steady_s,
        share_of_batches=ideal_s / took_s,
        share_with_start=ideal_s / reported["wall_s"],
        wall_s=reported["wall_s"],
        cpu_load=load,
        calls_per_s=len(batches) * TEXTS_PER_BATCH * sum(CALLS.values()) / took_s,
        calls_lost=int(sum(batch[4] for batch in batches)),
        driver_mib=reported["driver_mib"],
        store_mib=reported["store_mib"],
    )


def busy_share(spans: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """The share of time that the GPUs were busy while all actors had work, and how long that was
    (s).

    `spans` has (start, end) of each use of each actor's GPU. All actors have work from the last
    actor's first start to the first actor's last end. The share is not a number if that is no time
    at all.
    """
    if not all(spans):
        return float("nan"), 0.0
    since = max(min(began for began, _ in of_actor) for of_actor in spans)
    until = min(max(ended for _, ended in of_actor) for of_actor in spans)
    if until <= since:
        return float("nan"), 0.0
    flat = ((began, ended) for of_actor in spans for began, ended in of_actor)
    busy_s = sum(max(0.0, min(ended, until) - max(began, since)) for began, ended in flat)
    return busy_s / (len(spans) * (until - since)), until - since


def missed_limits(runs: Sequence[ScalingRun], corpora: Sequence[ScalingRun]) -> list[str]:
    """The limits that the runs, and the two with corpora of different size, miss."""
    missed = [
        f"{run.actors} actors: {run.share:.1%}"
        for run in runs
        if not run.share >= MIN_SHARES.get(run.actors, 0)
    ]
    missed += [f"{run.actors} actors: {run.calls_lost} calls lost" for run in runs if run.calls_lost]
    if corpora and (growth := corpora[1].driver_mib / corpora[0].driver_mib - 1) > MAX_GROWTH:
        missed.append(f"driver memory with {CORPUS_FACTOR} times the corpus: {growth:+.1%}")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description="Annotate on simulated GPUs.")
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, help="GPU time of a batch of 64 texts (60; elastic: 8)")
    parser.add_argument("--batches", type=int, help="per actor (4); elastic: of the run (50)")
    parser.add_argument(
        "--corpus-batches", type=int, default=5, help="per each of 4 actors, and ten times that; 0: skip"
    )
    parser.add_argument("--elastic", action="store_true", help="nodes join a run, and two are killed")
    parser.add_argument("--rounds", type=int, default=5, help="elastic: runs")
    parser.add_argument(
        "--every", type=float, default=40.0, help="elastic: seconds from one event to the next"
    )
    args = parser.parse_args(argv)
    if args.elastic:
        return run_rounds(args.rounds, args.seconds or 8.0, args.batches or 50, args.every)
    args.seconds, args.batches = args.seconds or 60.0, args.batches or 4
    nodes = [f"cpus={GPUS_PER_NODE + 4},gpus={GPUS_PER_NODE}"] * -(-max(args.actors) // GPUS_PER_NODE)
    os.environ |= LOOPBACK_ONLY
    with tempfile.TemporaryDirectory(prefix="scaling") as folder, LocalCluster(nodes) as cluster:
        print(HEADER)
        runs = []
        for actors in args.actors:
            runs.append(measure(cluster, Path(folder), actors, args.batches, args.seconds))
            print(runs[-1], flush=True)
        corpora = []
        if args.corpus_batches:
            print(f"a corpus {CORPUS_FACTOR} times as large (batches of 1 s):")
            for batches in (args.corpus_batches, CORPUS_FACTOR * args.corpus_batches):
                corpora.append(measure(cluster, Path(folder), 4, batches, 1.0))
                print(corpora[-1], flush=True)
    missed = missed_limits(runs, corpora)
    print("\n".join(f"missed: {limit}" for limit in missed) or "all limits met")
    measured = {"runs": list(map(asdict, runs)), "corpora": list(map(asdict, corpora)), "missed": missed}
    print(results.write("scaling", vars(args) | {"calls_per_text": CALLS}, measured))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
