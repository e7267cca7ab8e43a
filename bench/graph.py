"""What Ray costs: the same texts through the annotation graph with one actor, and through the bare engine.

    python -m bench.graph [--copies 6] [--threads 1]

Both have the demo's model, prompts and settings, its pages as often as `--copies` says (six: five minutes
and more on one core), `--threads` threads of torch, batches of 64 texts, and
calculator and calendar as tools, which cost next to nothing: whatever the graph loses, it loses to Ray. The
bare engine reads, annotates and makes rows in one process, one batch after the other. The graph is what
`python -m pipeline annotate` runs, on a local cluster, reading, serving tools and writing beside the actor.
Given are texts/s from the first batch to the last, and with everything from the start of the command: the
model, and for the graph Ray and its services. The rows must be the same. Out: a few lines, and
runs/bench/graph.json.
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

BAR = 0.9
LEAST_S = 300
COMPARED = ("status", "reason", "calls", "funnel")

DecodeBatch = dict[int, dict[str, Any]]


def configuration(folder: Path, copies: int, texts: int | None, threads: int) -> AnnotateConfig:
    """The demo's on copies of its pages in the folder, with one actor and two tools."""
    recipe = demo().annotate
    pages = folder / "pages"
    pages.mkdir()
    for shard in list_files(recipe.corpus):
        for copy in range(copies):
            shutil.copy(shard.path, pages / f"{copy}-{Path(shard.path).name}")
    return recipe.model_copy(
        update={
            "corpus": recipe.corpus.model_copy(update={"paths": (str(pages),), "max_texts": texts}),
            "method": recipe.method.model_copy(update={"tools": ("Calculator", "Calendar")}),
            "ray": RayConfig(actors=1, gpus_per_actor=0, cpus_per_actor=threads),
            "output": folder / "out",
        }
    )


def bare(config: AnnotateConfig) -> tuple[dict[str, float], DecodeBatch]:
    """The engine by itself."""
    torch.set_num_threads(int(config.ray.cpus_per_actor))
    began = time.perf_counter()
    tools = start_local_tools(config.tools, config.method.tools)
    annotator = Annotator(load_language_model(config.model), tools, config.method)
    loaded, rows = time.perf_counter(), {}
    for batch in _batches(config):
        rows |= {one.text.text_id: one.to_row() for one in annotator.annotate(batch)}
    ended = time.perf_counter()
    return _rates(len(rows), len(rows), ended - loaded, ended - began), rows


def _batches(config: AnnotateConfig) -> Iterator[list[Text]]:
    texts = read_corpus(list_files(config.corpus), config.corpus, TokenCounter(config.model.path))
    while batch := list(islice(texts, config.ray.texts_per_batch)):
        yield batch


def graph(config: AnnotateConfig) -> tuple[dict[str, float], DecodeBatch]:
    """The same through Ray. From the first file's writing to the last's, all texts but a batch are done."""
    began = time.perf_counter()
    annotate(config)
    wall = time.perf_counter() - began
    written = [file.stat().st_mtime for file in (config.output / ROWS).glob("*.parquet")]
    rows = {row["text_id"]: row for row in read_rows(config.output, ["text_id", *COMPARED])}
    later = len(rows) - config.ray.texts_per_batch
    return _rates(len(rows), later, max(written) - min(written), wall), rows


def _rates(texts: int, later: int, steady_s: float, wall_s: float) -> dict[str, float]:
    return {
        "texts": texts,
        "wall_s": round(wall_s, 1),
        "texts_per_s": round(later / steady_s, 3),
        "texts_per_s_with_start": round(texts / wall_s, 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The annotation graph beside the bare engine.")
    parser.add_argument("--texts", type=int, help="at most")
    parser.add_argument("--copies", type=int, default=6, help="of the demo's pages")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), args.copies, args.texts, args.threads)
        alone, expected = bare(config)
        print(f"bare engine  {alone}", flush=True)
        through, found = graph(config)
    print(f"Ray's graph  {through}")
    differ = [
        text_id
        for text_id in expected.keys() | found.keys()
        if any(expected.get(text_id, {}).get(name) != found.get(text_id, {}).get(name) for name in COMPARED)
    ]
    steady, whole = (through[name] / alone[name] for name in ("texts_per_s", "texts_per_s_with_start"))
    print(
        f"Ray's graph has {steady:.1%} of the bare engine's throughput, {whole:.1%} with the start "
        f"(bar {BAR:.0%} on {LEAST_S} s and more); {len(differ)} rows differ"
    )
    measured = {"bare": alone, "graph": through, "share": steady, "share_with_start": whole}
    print(f"written: {results.write('graph', vars(args), measured | {'rows_that_differ': len(differ)})}")


if __name__ == "__main__":
    main()
