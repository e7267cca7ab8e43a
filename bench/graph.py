"""The overhead of Ray: the same texts through the annotation graph and the bare engine.

    python -m bench.graph [--copies 6] [--threads 1] [--texts N]

Both use the demo's model, prompts and settings, `--copies` copies of its pages (six take over five
minutes on one core), `--threads` torch threads and batches of 64 texts. The tools are calculator
and calendar, which cost almost nothing, so whatever throughput the graph loses, it loses to Ray.
The bare engine reads, annotates and makes rows in one process, batch after batch: half of the texts
before the graph, and half after it, so that both meet the same load. The graph is what `python -m
pipeline annotate` runs, on a local cluster; reading, tools and writing run beside the actor.

Reported: texts per second and per CPU second of the bare engine and of the actor, from the first
batch to the last; the CPU seconds of all other processes; and the parts of the command: the start
(of Ray, its services and the model, until the first batch begins), the batches, and the end. The
share with the start is that of this run, and what the parts give for ten minutes of batches. Both
must give the same rows. Out: a few lines, and runs/bench/graph.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import torch

from bench import results
from pipeline.annotation.annotator_actor import AnnotateBatch
from pipeline.annotation.run import annotate
from pipeline.annotation.tool_start import tools_problem
from pipeline.base.config import AnnotateConfig, RayConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Text
from pipeline.cli.recipes import demo
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model
from pipeline.method.annotator import Annotator
from pipeline.method.selection import unselected_annotation
from pipeline.storage.row_files import read_rows
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.serving.local import start_local_tools

TEN_MINUTES_S = 600.0
TIMES, CONFIGURATION = "times", "configuration.json"
"""Files beside the output of the graph."""
_SAMPLE_INTERVAL_S = 0.5
COMPARED = ("status", "reason", "calls", "funnel")

Rows = dict[int, dict[str, Any]]  # by text id


def configuration(folder: Path, copies: int, texts: int | None, threads: int) -> AnnotateConfig:
    """The demo's configuration on `copies` copies of its pages, with one actor and two tools."""
    config = demo().annotate
    pages = folder / "pages"
    pages.mkdir()
    for file in list_files(config.corpus):
        for copy in range(copies):
            shutil.copy(file.path, pages / f"{copy}-{Path(file.path).name}")
    return config.model_copy(
        update={
            "corpus": config.corpus.model_copy(update={"paths": (str(pages),), "max_texts": texts}),
            "method": config.method.model_copy(update={"tools": ("Calculator", "Calendar")}),
            "ray": RayConfig(actors=1, gpus_per_actor=0, cpus_per_actor=threads),
            "output": folder / "out",
        }
    )


class TimedBatch(AnnotateBatch):
    """The real actor, which also writes when each batch began and ended, and the CPU time used by then."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._times = arguments[0].output.with_name(TIMES)
        self._note()

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """As AnnotateBatch's."""
        await tools_problem(self._progress)
        began = time.time()
        result = await super().__call__(batch)
        self._note(began)
        return result

    def _note(self, began: float = 0.0) -> None:
        with self._times.open("a", encoding="ascii") as file:
            print(began, time.time(), time.process_time(), os.getpid(), file=file)


@dataclass
class Measured:
    """A way to annotate: its texts, and the seconds and CPU seconds of its parts."""

    texts: int = 0
    start_s: float = 0.0
    batches_s: float = 0.0
    end_s: float = 0.0
    batches_cpu_s: float = 0.0
    """Of the process with the model."""
    others_cpu_s: float = 0.0
    """Of all other processes, from the start of the command to its end."""

    @property
    def texts_per_s(self) -> float:
        """From the first batch to the last."""
        return self.texts / self.batches_s

    @property
    def texts_per_cpu_s(self) -> float:
        """The same, of the process with the model."""
        return self.texts / self.batches_cpu_s

    def share_of(self, bare: Measured, work_s: float) -> float:
        """The share of the bare engine's throughput, starts included, for texts that take it `work_s`."""
        own_s = work_s * bare.texts_per_s / self.texts_per_s
        return (bare.start_s + work_s) / (self.start_s + own_s + self.end_s)

    def __str__(self) -> str:
        return (
            f"{self.texts} texts: start {self.start_s:.1f} s, batches {self.batches_s:.1f} s, end "
            f"{self.end_s:.1f} s; {self.texts_per_s:.2f} texts/s and {self.texts_per_cpu_s:.2f} a CPU second "
            f"in batches; other processes {self.others_cpu_s:.1f} CPU s"
        )


class BareEngine:
    """The engine in this process, loaded once."""

    def __init__(self, config: AnnotateConfig) -> None:
        torch.set_num_threads(int(config.ray.cpus_per_actor))
        began = time.perf_counter()
        tools = start_local_tools(config.tools, config.method.tools)
        self._annotator = Annotator(load_language_model(config.model), tools, config.method)
        self.measured = Measured(start_s=time.perf_counter() - began)
        self._tables: list[pa.Table] = []

    def run(self, batches: Sequence[Sequence[Text]]) -> None:
        """Annotate `batches` and make their rows."""
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in batches:
            rows = [annotation.to_row() for annotation in self._annotator.annotate(batch)]
            self._tables.append(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        self.measured.batches_s += time.perf_counter() - began
        self.measured.batches_cpu_s += time.process_time() - cpu_began
        self.measured.texts += sum(map(len, batches))

    def rows(self) -> Rows:
        """All rows, as they would be read from files."""
        return {row["text_id"]: row for table in self._tables for row in table.to_pylist()}


def batches_of(config: AnnotateConfig) -> list[list[Text]]:
    """The texts of the corpus, in the graph's batches; behind them those that no tool is tried on, whose rows
    the graph writes where it reads."""
    selected, others = [], []
    for text in read_corpus(list_files(config.corpus), config.corpus, TokenCounter(config.model.path)):
        (selected if unselected_annotation(text, config.method) is None else others).append(text)
    size = config.ray.texts_per_batch
    return [texts[at : at + size] for texts in (selected, others) for at in range(0, len(texts), size)]


def run_graph(config: AnnotateConfig) -> tuple[Measured, Rows]:
    """The graph in a process of its own, as the command has one."""
    code = f"from bench.graph import annotate_from; annotate_from({str(config.output.parent)!r})"
    (config.output.parent / CONFIGURATION).write_text(config.model_dump_json(), encoding="utf-8")
    began = time.time()
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        cpu_s = cpu_seconds(process)
    ended = time.time()
    if process.returncode:
        raise SystemExit("the graph failed")
    lines = config.output.with_name(TIMES).read_text(encoding="ascii").splitlines()
    ready, *batches = [tuple(map(float, line.split())) for line in lines]
    first, last = min(batch[0] for batch in batches), max(batch[1] for batch in batches)
    rows = {row["text_id"]: row for row in read_rows(config.output, ["text_id", *COMPARED])}
    measured = Measured(
        texts=len(rows),
        start_s=first - began,
        batches_s=last - first,
        end_s=ended - last,
        batches_cpu_s=batches[-1][2] - ready[2],
        others_cpu_s=sum(cpu_s.values()) - cpu_s[int(ready[3])],
    )
    return measured, rows


def annotate_from(folder: str) -> None:
    """The measured command."""
    text = (Path(folder) / CONFIGURATION).read_text(encoding="utf-8")
    annotate(AnnotateConfig.model_validate_json(text), TimedBatch)


def cpu_seconds(process: subprocess.Popen[bytes]) -> dict[int, float]:
    """Wait for the end of `process`: CPU seconds of it and of each process below it, by id.

    The last fraction of a second of each is not seen.
    """
    seen: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for each in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = each.cpu_times()
                    seen[each.pid] = times.user + times.system
        time.sleep(_SAMPLE_INTERVAL_S)
    return seen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare the annotation graph with the bare engine.")
    parser.add_argument("--texts", type=int, help="at most so many texts")
    parser.add_argument("--copies", type=int, default=6, help="copies of the demo's pages")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), args.copies, args.texts, args.threads)
        engine, batches = BareEngine(config), batches_of(config)
        half = len(batches) // 2
        engine.run(batches[:half])
        graph, rows = run_graph(config)
        engine.run(batches[half:])
    bare, expected = engine.measured, engine.rows()
    print(f"bare engine  {bare}\nRay's graph  {graph}")
    differing = [
        text_id
        for text_id in expected.keys() | rows.keys()
        if any(expected.get(text_id, {}).get(name) != rows.get(text_id, {}).get(name) for name in COMPARED)
    ]
    shares = {
        "in batches": graph.texts_per_s / bare.texts_per_s,
        "in batches, per CPU second of the model's process": graph.texts_per_cpu_s / bare.texts_per_cpu_s,
        "with start and end": graph.share_of(bare, bare.batches_s),
        "with start and end, for ten minutes of batches": graph.share_of(bare, TEN_MINUTES_S),
    }
    for name, share in shares.items():
        print(f"the graph's share of the bare engine's throughput, {name}: {share:.1%}")
    print(f"{len(differing)} rows differ")
    measured = {"bare": asdict(bare), "graph": asdict(graph), "shares": shares}
    measured["rows_that_differ"] = len(differing)
    print(f"written: {results.write('graph', vars(args), measured)}")


if __name__ == "__main__":
    main()
