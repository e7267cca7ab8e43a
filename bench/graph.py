"""The overhead of Ray: the same texts through the annotation graph and the bare engine.

    python -m bench.graph [--copies 6] [--threads 1]

Both use the demo's model, prompts and settings, `--copies` copies of its pages (six take over five
minutes on one core), `--threads` torch threads and batches of 64 texts. The tools are calculator
and calendar, which cost almost nothing, so whatever throughput the graph loses, it loses to Ray.
The bare engine reads, annotates and makes rows in one process, batch after batch. The graph is what
`python -m pipeline annotate` runs, on a local cluster; reading, tools and writing run beside the
actor.

Reported: texts/s from the first batch to the last, and texts/s from the start of the command, which
includes loading the model and, for the graph, starting Ray and its services. Both must give the
same rows. Out: a few lines, and runs/bench/graph.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench import results
from pipeline.annotation.run import annotate
from pipeline.base.config import AnnotateConfig, RayConfig
from pipeline.base.records import Text
from pipeline.cli.recipes import demo
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model
from pipeline.method.annotator import Annotator
from pipeline.storage.row_files import ROWS, read_rows
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.serving.local import start_local_tools

MIN_SHARE = 0.9
MIN_DURATION_S = 300
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


def run_engine(config: AnnotateConfig) -> tuple[dict[str, float], Rows]:
    """Rates and rows of the bare engine."""
    torch.set_num_threads(int(config.ray.cpus_per_actor))
    began = time.perf_counter()
    tools = start_local_tools(config.tools, config.method.tools)
    annotator = Annotator(load_language_model(config.model), tools, config.method)
    loaded, rows = time.perf_counter(), {}
    for batch in _batches(config):
        annotations = annotator.annotate(batch)
        rows |= {annotation.text.text_id: annotation.to_row() for annotation in annotations}
    ended = time.perf_counter()
    return _rates(len(rows), len(rows), ended - loaded, ended - began), rows


def _batches(config: AnnotateConfig) -> Iterator[list[Text]]:
    texts = read_corpus(list_files(config.corpus), config.corpus, TokenCounter(config.model.path))
    while batch := list(islice(texts, config.ray.texts_per_batch)):
        yield batch


def run_graph(config: AnnotateConfig) -> tuple[dict[str, float], Rows]:
    """Rates and rows of the graph.

    Every batch is a file. Between the times of the first and the last file all batches but one are
    annotated.
    """
    began = time.perf_counter()
    annotate(config)
    wall_s = time.perf_counter() - began
    written = [file.stat().st_mtime for file in (config.output / ROWS).glob("*.parquet")]
    rows = {row["text_id"]: row for row in read_rows(config.output, ["text_id", *COMPARED])}
    steady_texts = len(rows) - config.ray.texts_per_batch
    return _rates(len(rows), steady_texts, max(written) - min(written), wall_s), rows


def _rates(texts: int, steady_texts: int, steady_s: float, wall_s: float) -> dict[str, float]:
    return {
        "texts": texts,
        "wall_s": round(wall_s, 1),
        "texts_per_s": round(steady_texts / steady_s, 3),
        "texts_per_s_with_start": round(texts / wall_s, 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare the annotation graph with the bare engine.")
    parser.add_argument("--texts", type=int, help="at most so many texts")
    parser.add_argument("--copies", type=int, default=6, help="copies of the demo's pages")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), args.copies, args.texts, args.threads)
        engine, expected = run_engine(config)
        print(f"bare engine  {engine}", flush=True)
        graph, rows = run_graph(config)
    print(f"Ray's graph  {graph}")
    differing = [
        text_id
        for text_id in expected.keys() | rows.keys()
        if any(expected.get(text_id, {}).get(name) != rows.get(text_id, {}).get(name) for name in COMPARED)
    ]
    share, share_with_start = (
        graph[name] / engine[name] for name in ("texts_per_s", "texts_per_s_with_start")
    )
    print(
        f"Ray's graph has {share:.1%} of the bare engine's throughput, {share_with_start:.1%} with the start "
        f"(limit {MIN_SHARE:.0%}, for runs of {MIN_DURATION_S} s and more); {len(differing)} rows differ"
    )
    measured = {"bare": engine, "graph": graph, "share": share, "share_with_start": share_with_start}
    measured["rows_that_differ"] = len(differing)
    print(f"written: {results.write('graph', vars(args), measured)}")


if __name__ == "__main__":
    main()
