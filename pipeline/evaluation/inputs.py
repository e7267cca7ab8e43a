"""The benchmarks of an evaluation: question files, published files and running texts.

In: the entries of `--benchmarks`, paths and NAME=PATH. Out: benchmarks and texts, with distinct names.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.benchmarks.published import load, published_name
from pipeline.benchmarks.wikitext import NAME as WIKITEXT
from pipeline.benchmarks.wikitext import RunningText, wikitext
from pipeline.evaluation.questions import Benchmark, from_published, read_benchmark
from pipeline.evaluation.results import EvaluationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The benchmarks in their order, and the running texts by name."""

    benchmarks: Sequence[Benchmark]
    texts: Mapping[str, RunningText]


def read_inputs(entries: Sequence[Path], tools: Collection[str], *, first_line: bool) -> Inputs:
    """Read what `entries` name. Raises QuestionError, BenchmarkFileError, EvaluationError.

    A published benchmark has its own name, with that of the file if its name is given twice.
    """
    published_entries = [published_name(path) for path in entries]
    uses = Counter(published[0] for published in published_entries if published is not None)
    benchmarks: list[Benchmark] = []
    texts: list[tuple[str, RunningText]] = []
    for path, published in zip(entries, published_entries, strict=True):
        if published is None:
            benchmarks.append(read_benchmark(path, tools))
            continue
        name, source = published
        title = name if uses[name] == 1 else f"{name}:{source.name}"
        if name == WIKITEXT:
            texts.append((title, wikitext(source)))
            continue
        benchmarks.append(from_published(load(name, source), title, first_line=first_line))
        _log(benchmarks[-1])
    names = Counter([*(benchmark.name for benchmark in benchmarks), *(name for name, _ in texts)])
    if repeated := [name for name, count in names.items() if count > 1]:
        raise EvaluationError(
            f"benchmarks: two are called {repeated[0]}; results are named by file, so rename one"
        )
    return Inputs(benchmarks, dict(texts))


def _log(benchmark: Benchmark) -> None:
    unusable = sum(not question.usable_answers for question in benchmark.questions)
    left_out = "".join(f", {number:,} left out: {why}" for why, number in benchmark.left_out.items())
    without = f", {unusable:,} without a usable answer" if unusable else ""
    logger.info("%s: %s questions%s%s", benchmark.name, f"{len(benchmark.questions):,}", without, left_out)
