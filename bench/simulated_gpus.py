"""Annotating actors with simulated GPUs, for bench/scaling.py and bench/elastic.py.

`TimedBatch` holds its GPU for the time of a batch by sleeping; batches, calls and rows are real.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from cluster.local import ROOT
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
from pipeline.method.execution import ExecutedCall, execute
from pipeline.storage.row_files import ROWS, write_rows
from pipeline.syntax.tokenizer import load_tokenizer
from tools_service.contract.tool import TRANSIENT

TEXTS_PER_BATCH = 64
TOOLS: tuple[str, ...] = ("WikiSearch", "Calculator", "Calendar")
CALLS: dict[str, int] = {"WikiSearch": 5, "Calculator": 12, "Calendar": 1}
"""Distinct calls per text. Few of them equal a call of another text."""
SECONDS = "seconds"
"""File next to a run's output with the model's time for a batch; nodes get no variables."""
_FILES = 4


class TimedBatch:
    """An annotating actor with a simulated model; batches, calls and rows are real."""

    def __init__(self, config: AnnotateConfig, tools: Any, progress: Any) -> None:
        self._tools, self._progress, self._rows = tools, progress, config.output / ROWS
        load_tokenizer(config.model.path)  # as a real actor does before it is ready
        self._seconds = float((config.output.parent / SECONDS).read_text(encoding="ascii"))
        folder, name = times_folder(config.output), str(os.getpid())
        self._times = (folder / name).open("a", encoding="ascii")
        self._gpu, self._started = asyncio.Lock(), False
        while ray.get(progress.tools_problem.remote()) is None:
            time.sleep(0.1)
        # Ray Data gives batches to the actors that are ready. So each actor waits for all others.
        while len(names := sorted(path.name for path in folder.iterdir())) < config.ray.actors:
            time.sleep(0.1)
        self._delay_s = names.index(name) / config.ray.actors * self._seconds

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """As AnnotateBatch's."""
        texts = from_block(batch)
        times = [*await self._use_gpu()]
        candidates = [calls_of(text) for text in texts]
        executed = await execute(candidates, ["2019-03-05"] * len(texts), self._tools)
        times += await self._use_gpu()
        lost = sum(call.reason in TRANSIENT for calls in executed for call in calls)
        print(*times, lost, file=self._times, flush=True)
        await self._progress.annotated.remote(len(texts), [])
        rows = [annotation(*pair).to_row() for pair in zip(texts, executed, strict=True)]
        write_rows(self._rows, pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        return pa.table({"texts": [len(texts)]})

    async def _use_gpu(self) -> tuple[float, float]:
        """Hold the GPU for half of a batch's time; returns when that began and ended."""
        async with self._gpu:
            if not self._started:
                await asyncio.sleep(self._delay_s)
                self._started = True
            began = time.monotonic()
            await asyncio.sleep(self._seconds / 2)
            return began, time.monotonic()


def calls_of(text: Text) -> list[Candidate]:
    """Calls for a text, made of its own words and its own number."""
    words = text.text.split()
    number = text.text_id % 9_973
    inputs: dict[str, list[str]] = {
        "WikiSearch": [" ".join(words[3 * n : 3 * n + 4]) for n in range(CALLS["WikiSearch"])],
        "Calculator": [f"({number} + {n}) * {n + 2} / 7" for n in range(CALLS["Calculator"])],
        "Calendar": [""] * CALLS["Calendar"],
    }
    return [
        Candidate(tool=tool, position=n, token_index=n, p_api=0.1, input=argument, draws=2)
        for tool, arguments in inputs.items()
        for n, argument in enumerate(arguments)
    ]


def annotation(text: Text, executed: Sequence[ExecutedCall]) -> Annotation:
    """A row as large as a real one."""
    calls = tuple(
        Call(
            tool=call.candidate.tool,
            position=call.candidate.position,
            p_api=0.1,
            input=call.candidate.input,
            result=call.result,
            l_plus=1.0,
            l_empty=2.0,
            l_call=2.1,
            gain=1.0,
        )
        for call in executed
        if call.result is not None
    )
    funnel = tuple(Funnel(tool, "all", 5, 25, number, number, number) for tool, number in CALLS.items())
    work = tuple(PhaseWork(tool, "decode", Cost(100), Cost(100)) for tool in CALLS)
    return Annotation(text, "annotated", None, calls, funnel, work)


def times_folder(output: Path) -> Path:
    """Where each actor of a run into `output` writes a line per batch: start and end on the GPU,
    twice, and the number of lost calls."""
    return output.with_name(output.name + ".times")


def configuration(world: Path, output: Path, actors: int) -> AnnotateConfig:
    """The demo's model (for its tokenizer) and tools, with simulated GPUs."""
    config = demo().annotate
    search = config.tools.wikisearch.model_copy(update={"index": world / "index"})
    return AnnotateConfig(
        corpus=CorpusConfig(paths=(str(world / "pages"),)),
        model=config.model,
        method=MethodConfig(tools=TOOLS, prompts=config.method.prompts),
        tools=config.tools.model_copy(update={"wikisearch": search}),
        ray=RayConfig(actors=actors, gpus_per_actor=1, texts_per_batch=TEXTS_PER_BATCH),
        output=output,
    )


def write_pages(folder: Path, texts: int) -> None:
    """Write `texts` pages of about 60 words; each is one text."""
    articles = (ROOT / "demo/encyclopedia/articles.jsonl").read_text(encoding="utf-8").splitlines()
    words = [word for line in articles for word in json.loads(line)["text"].split()]
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(_FILES):
        lines = []
        for number in range(file, texts, _FILES):
            start = 7 * number % (len(words) - 60)
            page = {"text": f"Page {number}. " + " ".join(words[start : start + 60])}
            lines.append(json.dumps(page | {"url": f"https://example.org/2019/03/05/{number}"}))
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
