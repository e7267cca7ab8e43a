"""Paired tests: two models on the same questions (McNemar's exact test).

In: the predictions of two labels. Out: how many questions only one of them has right, and the probability of
such a difference by chance. A benchmark whose questions differ is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.results import Evaluation, ModelResult, PairedTest
from pipeline.evaluation.store import predictions_file
from tools_service.base.files import atomic_write
from tools_service.base.locks import output_lock

Outcomes = dict[str, list[tuple[str, str, list[str], bool]]]
"""By benchmark: id, prompt and answers of each question, and whether it is right."""


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p for `b` and `c` discordant pairs: binomial with a half (1 if there is none)."""
    n = b + c
    tail = sum(math.comb(n, successes) for successes in range(min(b, c) + 1))
    return min(1.0, 2 * tail / (1 << n))


def store_paired_tests(output: Path, choices: Mapping[str, str | None]) -> Evaluation:
    """Put the paired tests that the predictions allow into evaluation.json; returns its content.

    `choices` has the other model of each label that was evaluated now; another label keeps its own, and is
    compared again because the other model may have changed.
    """
    with output_lock(output, wait=True):
        evaluation = _compared_labels(Evaluation.read(output), output, choices)
        atomic_write(output, evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


def _compared_labels(evaluation: Evaluation, output: Path, choices: Mapping[str, str | None]) -> Evaluation:
    outcomes = {label: _outcomes(predictions_file(output, label)) for label in evaluation.models}
    models = {}
    for label, model in evaluation.models.items():
        other = choices.get(label, model.compared_with)
        if other == label or other not in outcomes:
            other = None
        theirs = outcomes[other] if other else {}
        models[label] = _compared(model, other, outcomes[label], theirs)
    return Evaluation(models=models)


def _compared(model: ModelResult, other: str | None, ours: Outcomes, theirs: Outcomes) -> ModelResult:
    benchmarks = {
        name: result.model_copy(update={"paired": _paired(ours.get(name, []), theirs.get(name, []))})
        for name, result in model.benchmarks.items()
    }
    return model.model_copy(update={"benchmarks": benchmarks, "compared_with": other})


def _paired(
    ours: list[tuple[str, str, list[str], bool]], theirs: list[tuple[str, str, list[str], bool]]
) -> PairedTest | None:
    if not ours or [question[:-1] for question in ours] != [question[:-1] for question in theirs]:
        return None
    pairs = [(mine[-1], other[-1]) for mine, other in zip(ours, theirs, strict=True)]
    b, c = pairs.count((True, False)), pairs.count((False, True))
    return PairedTest(b=b, c=c, p=mcnemar(b, c))


def _outcomes(path: Path) -> Outcomes:
    """Empty for a label of an earlier version, whose predictions are not in Parquet."""
    outcomes: Outcomes = {}
    columns = ["benchmark", "id", "prompt", "answers", "right"]
    try:
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException):
        return outcomes
    for row in rows:
        outcomes.setdefault(row["benchmark"], []).append(tuple(row[column] for column in columns[1:]))
    return outcomes
