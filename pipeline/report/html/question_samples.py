"""Questions with a model's answers, to be read: right and wrong ones, with calls and without.

In: the predictions beside evaluation.json, of this version (Parquet) or of earlier ones (JSON lines). Out: at
most 40 for each model and benchmark, fewer if there are many of these. A hash of the question's id selects
them, so that the models show the same questions where they can.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.report.html.data import Question
from tools_service.base.errors import brief
from tools_service.syntax.calls import linearise

_PER_CELL = 40
_IN_ALL = 1_600
_LEAST_PER_CELL = 4
_MAX_PROMPT = 1_500  # characters; the end says what is asked
_COLUMNS = ["benchmark", "id", "prompt", "annotated", "answers", "right", "calls"]

Row = Mapping[str, Any]
"""A prediction: the columns above."""


def sampled_questions(
    file: Path, labels: Sequence[str], benchmarks: Sequence[str]
) -> tuple[list[Question], list[str]]:
    """The questions by benchmark and label, and a sentence for each label without readable predictions."""
    number = _PER_CELL if benchmarks else 0
    if cells := len(labels) * len(benchmarks):
        number = max(_LEAST_PER_CELL, min(_PER_CELL, _IN_ALL // cells))
    rows: dict[tuple[str, str], list[Row]] = {}
    problems = []
    for label in labels:
        try:
            by_benchmark = _by_benchmark(_read(file, label))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"The answers of {label} cannot be read: {brief(error)}")
            continue
        for benchmark in benchmarks:
            rows[benchmark, label] = _spread(by_benchmark.get(benchmark, []), number)
    questions = [
        _question(row, label)
        for benchmark in benchmarks
        for label in labels
        for row in rows.get((benchmark, label), [])
    ]
    return questions, problems


def _read(file: Path, label: str) -> Iterator[Row]:
    predictions = file.with_name(f"{file.stem}.{label}.parquet")
    if predictions.exists():
        with pq.ParquetFile(predictions) as table:
            for batch in table.iter_batches(columns=_COLUMNS):
                yield from batch.to_pylist()
        return
    with file.with_name(f"{file.stem}.{label}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield {**row, "annotated": _annotated(row["prediction"], row["calls"])}


def _annotated(text: str, calls: Iterable[Row]) -> str:
    """The text with its calls, which files of earlier versions do not have."""
    for call in sorted(calls, key=lambda call: -int(call["position"])):
        at = call["position"]
        text = text[:at] + linearise(call["tool"], call["input"], call["result"]) + text[at:]
    return text


def _by_benchmark(rows: Iterable[Row]) -> dict[str, list[Row]]:
    by_benchmark: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_benchmark[row["benchmark"]].append(row)
    return by_benchmark


def _spread(rows: Sequence[Row], number: int) -> list[Row]:
    """At most `number` rows; right and wrong ones, with and without calls, take turns."""
    kinds: defaultdict[tuple[bool, bool], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_sort_key):
        kinds[row["right"], bool(row["calls"])].append(row)
    alternating = zip_longest(*(kinds[kind] for kind in sorted(kinds, reverse=True)))
    return list(islice((row for row in chain.from_iterable(alternating) if row is not None), number))


def _sort_key(row: Row) -> bytes:
    key = f"{row['benchmark']} {row['id']}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=8).digest()


def _question(row: Row, label: str) -> Question:
    prompt = row["prompt"]
    if len(prompt) > _MAX_PROMPT:
        prompt = "… " + prompt[-_MAX_PROMPT:]
    return Question(
        benchmark=row["benchmark"],
        label=label,
        prompt=prompt,
        generated=row["annotated"],
        answers=tuple(row["answers"]),
        right=row["right"],
    )
