"""How annotating scales: the real graph on 1 to 32 pretended GPU actors whose model takes a fixed time.

    python -m bench.scaling [--actors 1 2 4 8 16 32] [--seconds 60] [--batches 4]

Everything is what `python -m pipeline annotate` runs (reading, batches, scheduling, the tools on Ray Serve
with their calls, writing, progress) on a cluster.local, except the actors, which keep no metrics and no list
of what they have begun (two small messages a batch): `TimedBatch` keeps its GPU for
`--seconds` a batch by sleeping, half before the calls and half after, and sends calls for every text (CALLS)
to calculator, calendar and search. Two batches share an actor's GPU, as in production. (`plan` gives an A100
30 s for 64 web texts of 400 tokens with GPT-J under calculator and calendar alone.)

All actors are ready before the first begins (32 processes starting on a few cores are no part of the
question), and begin one after the other within a batch's time, as actors do that have run for a while. The
share of ideal throughput is the share of the time that the GPUs were busy, from when the last actor has begun
until the first has no batch left; beside it, batches x seconds / actors over the time from the first batch
begun to the last one done, and over all of the command. Also: CPU load, the driver's peak memory, the peak of
the object store; and driver memory with a corpus ten times as large. Out: a table, runs/bench/scaling.json.
"""

from __future__ import annotations

import argparse
import asyncio
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
import pyarrow as pa

from bench import results
from cluster.local import LOOPBACK_ONLY, ROOT, LocalCluster
from pipeline.annotation.run import annotate
from pipeline.annotation.source import from_block
from pipeline.base.config import AnnotateConfig, CorpusConfig, MethodConfig, RayConfig
from pipeline.base.records import (
    ANNOTATION_SCHEMA,
    Annotation,
    Call,
    Candidate,
    Cost,
    Funnel,
    PhaseWork,
    Text,
)
from pipeline.cli.recipes import demo
from pipeline.method.execution import ExecutedCall, aexecute
from pipeline.storage.row_files import ROWS, write_rows
from pipeline.syntax.tokenizer import load_tokenizer
from tools_service.tools.contract import TRANSIENT, ToolName

TEXTS_PER_BATCH = 64
TOOLS: tuple[ToolName, ...] = ("WikiSearch", "Calculator", "Calendar")
CALLS: dict[ToolName, int] = {"WikiSearch": 5, "Calculator": 12, "Calendar": 1}
"""Different calls a text brings; few of them are those of another text."""
GPUS_PER_NODE = 8
BARS = {16: 0.95, 32: 0.90}
LARGER = 10
MOST_GROWTH = 0.10
SECONDS = "seconds"
"""File beside a run's output: the model's time for a batch. The nodes do not have the driver's variables."""
_SAMPLE_S = 2.0
_SHARDS = 4


class TimedBatch:
    """An annotating actor whose model only takes time; batches, calls and rows are as always."""

    def __init__(self, config: AnnotateConfig, tools: Any, tally: Any) -> None:
        self._tools, self._tally, self._rows = tools, tally, config.output / ROWS
        load_tokenizer(config.model.path)  # as a real one has when it is ready; results are measured with it
        self._seconds = float((config.output.parent / SECONDS).read_text(encoding="ascii"))
        self._actors = config.ray.actors
        self._folder = times_of(config.output)
        self._name = str(os.getpid())
        self._times = (self._folder / self._name).open("a", encoding="ascii")
        self._gpu, self._begun = asyncio.Lock(), False
        # Ray Data hands batches to whoever is ready: all are, or none.
        while len(names := sorted(path.name for path in self._folder.iterdir())) < self._actors:
            time.sleep(0.1)
        self._late_s = names.index(self._name) / self._actors * self._seconds

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """As AnnotateBatch's."""
        texts = from_block(batch)
        halves = [*await self._half()]
        candidates = [calls_of(text) for text in texts]
        executed = await aexecute(candidates, ["2019-03-05"] * len(texts), self._tools)
        halves += await self._half()
        lost = sum(call.reason in TRANSIENT for calls in executed for call in calls)
        print(*halves, lost, file=self._times, flush=True)
        await self._tally.annotated.remote(len(texts), [])
        rows = [annotation(*pair).to_row() for pair in zip(texts, executed, strict=True)]
        write_rows(self._rows, pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        return pa.table({"texts": [len(texts)]})

    async def _half(self) -> tuple[float, float]:
        """Half of a batch's time on the GPU; from when to when it was."""
        async with self._gpu:
            if not self._begun:
                await asyncio.sleep(self._late_s)
                self._begun = True
            began = time.monotonic()
            await asyncio.sleep(self._seconds / 2)
            return began, time.monotonic()


def calls_of(text: Text) -> list[Candidate]:
    """What might be asked about a text: the words and numbers that make up the calls are its own."""
    words = text.text.split()
    number = text.text_id % 9_973
    inputs: dict[ToolName, list[str]] = {
        "WikiSearch": [" ".join(words[3 * n : 3 * n + 4]) for n in range(CALLS["WikiSearch"])],
        "Calculator": [f"({number} + {n}) * {n + 2} / 7" for n in range(CALLS["Calculator"])],
        "Calendar": [""] * CALLS["Calendar"],
    }
    return [
        Candidate(tool=tool, position=n, token_index=n, p_api=0.1, input=one, draws=2)
        for tool, asked in inputs.items()
        for n, one in enumerate(asked)
    ]


def annotation(text: Text, executed: Sequence[ExecutedCall]) -> Annotation:
    """A row as large as a real one."""
    calls = tuple(
        Call(
            one.candidate.tool,
            one.candidate.position,
            0.1,
            one.candidate.input,
            one.result,
            1.0,
            2.0,
            2.1,
            1.0,
        )
        for one in executed
        if one.result is not None
    )
    funnel = tuple(Funnel(tool, "all", 5, 25, number, number, number) for tool, number in CALLS.items())
    work = tuple(PhaseWork(tool, "decode", Cost(100), Cost(100)) for tool in CALLS)
    return Annotation(text, "annotated", None, calls, funnel, work)


def times_of(output: Path) -> Path:
    """Where each actor of a run into `output` writes, a line a batch: when it began and ended on the GPU,
    twice, and how many calls were lost."""
    return output.with_name(output.name + ".times")


def configured(world: Path, output: Path, actors: int) -> AnnotateConfig:
    """The demo's model (for its tokenizer) and tools, with GPUs that nobody has."""
    recipe = demo().annotate
    search = recipe.tools.wikisearch.model_copy(update={"index": world / "index"})
    return AnnotateConfig(
        corpus=CorpusConfig(paths=(str(world / "pages"),)),
        model=recipe.model,
        method=MethodConfig(tools=TOOLS, prompts=recipe.method.prompts),
        tools=recipe.tools.model_copy(update={"wikisearch": search}),
        ray=RayConfig(actors=actors, gpus_per_actor=1, texts_per_batch=TEXTS_PER_BATCH),
        output=output,
    )


def drive(world: str, output: str, actors: int) -> None:
    """The command that is measured; prints what it saw of itself and of the object stores as JSON."""
    began = time.monotonic()
    with _store_peak() as peak:
        annotate(configured(Path(world), Path(output), actors), TimedBatch)
    wall_s = time.monotonic() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"wall_s": wall_s, "driver_mib": memory, "store_mib": max(peak, default=0.0) / 2**20}))


@contextmanager
def _store_peak() -> Iterator[list[float]]:
    """Bytes in all object stores, every few seconds."""
    peak: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            peak.append(_store_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _store_bytes() -> float:
    """From the nodes' metrics, which are some seconds old."""
    import ray

    if not ray.is_initialized():
        return 0.0
    total = 0.0
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:  # not up yet, or busy
            continue
        total += sum(float(line.split()[-1]) for line in lines if line.startswith("ray_object_store_memory{"))
    return total


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    actors: int
    batches: int
    seconds: float
    """Of one batch on the GPU."""
    share: float
    """Of the ideal throughput, while all actors had work."""
    steady_s: float
    """How long that was."""
    share_of_batches: float
    """The same from the first batch begun to the last one done."""
    share_with_start: float
    """The same from the start of the command to its end."""
    wall_s: float
    cpu_load: float
    """Of all cores, by everything on the machine, during the run."""
    calls_per_s: float
    calls_lost: int
    """Because a tool was late, overloaded or gone; a search may also find nothing."""
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


def write_pages(folder: Path, texts: int) -> None:
    """So many pages of about 60 words, each of which is one text."""
    words = [
        word
        for line in (ROOT / "demo/encyclopedia/articles.jsonl").open()
        for word in json.loads(line)["text"].split()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(_SHARDS):
        lines = []
        for number in range(shard, texts, _SHARDS):
            start = 7 * number % (len(words) - 60)
            page = {"text": f"Page {number}. " + " ".join(words[start : start + 60])}
            lines.append(json.dumps(page | {"url": f"https://example.org/2019/03/05/{number}"}))
        (folder / f"{shard}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(cluster: LocalCluster, folder: Path, actors: int, batches: int, seconds: float) -> Measured:
    """One run of so many batches per actor."""
    world = folder / f"{actors}x{batches}"
    write_pages(world / "pages", actors * batches * TEXTS_PER_BATCH)
    output = world / "out"
    times_of(output).mkdir(parents=True)
    (world / SECONDS).write_text(str(seconds), encoding="ascii")
    code = f"from bench.scaling import drive; drive({str(world)!r}, {str(output)!r}, {actors})"
    before, began = psutil.cpu_times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=cluster.environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cores_s = (time.monotonic() - began) * (os.cpu_count() or 1)
    load = cpu_load(before, psutil.cpu_times(), cores_s)
    return summary(output, actors, seconds, load, json.loads(done.stdout.splitlines()[-1]))


def cpu_load(before: Any, after: Any, cores_s: float) -> float:
    """Share of so many seconds, of all cores together, that was not idle."""
    idle: float = after.idle - before.idle + after.iowait - before.iowait
    return 1 - idle / cores_s


def summary(output: Path, actors: int, seconds: float, load: float, seen: dict[str, float]) -> Measured:
    """From what the actors wrote down."""
    written = [path.read_text(encoding="ascii").splitlines() for path in times_of(output).iterdir()]
    lines = [[[float(number) for number in line.split()] for line in actor] for actor in written]
    batches = [line for actor in lines for line in actor]
    share, steady_s = busy([[span for line in actor for span in (line[:2], line[2:4])] for actor in lines])
    ideal_s = len(batches) * seconds / actors
    took_s = max(line[3] for line in batches) - min(line[0] for line in batches)
    return Measured(
        actors=actors,
        batches=len(batches),
        seconds=seconds,
        share=share,
        steady_s=steady_s,
        share_of_batches=ideal_s / took_s,
        share_with_start=ideal_s / seen["wall_s"],
        wall_s=seen["wall_s"],
        cpu_load=load,
        calls_per_s=len(batches) * TEXTS_PER_BATCH * sum(CALLS.values()) / took_s,
        calls_lost=int(sum(line[4] for line in batches)),
        driver_mib=seen["driver_mib"],
        store_mib=seen["store_mib"],
    )


def busy(actors: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """The share of the time that GPUs were busy, given from when to when each was, for as long as all had
    work: from when the last begins until the first ends for good; and how long that is. Not a number if it is
    no time at all."""
    if not all(actors):
        return float("nan"), 0.0
    since = max(min(began for began, _ in actor) for actor in actors)
    until = min(max(ended for _, ended in actor) for actor in actors)
    if until <= since:
        return float("nan"), 0.0
    spans = ((began, ended) for actor in actors for began, ended in actor)
    worked = sum(max(0.0, min(ended, until) - max(began, since)) for began, ended in spans)
    return worked / (len(actors) * (until - since)), until - since


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description="Annotate on pretended GPUs.")
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=60.0, help="the GPU's time for a batch of 64 texts")
    parser.add_argument("--batches", type=int, default=4, help="for each actor")
    parser.add_argument(
        "--corpus-batches", type=int, default=5, help="for each of 4 actors, and ten times that; 0: none"
    )
    arguments = parser.parse_args(argv)
    nodes = [f"cpus={GPUS_PER_NODE + 4},gpus={GPUS_PER_NODE}"] * -(-max(arguments.actors) // GPUS_PER_NODE)
    os.environ |= LOOPBACK_ONLY
    with tempfile.TemporaryDirectory(prefix="scaling") as folder, LocalCluster(nodes) as cluster:
        print(HEADER)
        runs = []
        for actors in arguments.actors:
            runs.append(measure(cluster, Path(folder), actors, arguments.batches, arguments.seconds))
            print(runs[-1], flush=True)
        corpora = []
        if few := arguments.corpus_batches:
            print(f"a corpus {LARGER} times as large (batches of 1 s):")
            for batches in (few, LARGER * few):
                corpora.append(measure(cluster, Path(folder), 4, batches, 1.0))
                print(corpora[-1], flush=True)
    missed = [
        f"{one.actors} actors: {one.share:.1%}" for one in runs if not one.share >= BARS.get(one.actors, 0)
    ]
    missed += [f"{one.actors} actors: {one.calls_lost} calls lost" for one in runs if one.calls_lost]
    if corpora and (growth := corpora[1].driver_mib / corpora[0].driver_mib - 1) > MOST_GROWTH:
        missed.append(f"driver memory with {LARGER} times the corpus: {growth:+.1%}")
    print("\n".join(f"missed: {one}" for one in missed) or "all bars met")
    measured = {"runs": [asdict(one) for one in runs], "corpora": [asdict(one) for one in corpora]}
    print(
        results.write("scaling", vars(arguments) | {"calls_per_text": CALLS}, measured | {"missed": missed})
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
