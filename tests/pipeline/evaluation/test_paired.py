"""McNemar's exact test, against values worked by hand, and which questions it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation.paired import mcnemar, store_paired_tests
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import ModelResult, PairedTest, summarise
from pipeline.evaluation.store import ResultStore
from pipeline.inference.generation import Generation

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (15, 5, 0.04138946533203125),
    ],
)
def test_p_is_the_binomials(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == mcnemar(c, b) == p


def test_p_of_large_counts() -> None:
    """11,313 questions, as TriviaQA has: neither an overflow nor a rounding to 0."""
    assert 0 < mcnemar(6_000, 5_313) < 1e-9
    assert mcnemar(11_313, 0) == 0  # below the smallest float


def save(output: Path, label: str, rights: str, first_id: int = 0, benchmark: str = "b") -> None:
    predictions = [
        Prediction(
            benchmark,
            Question(id=str(first_id + n), prompt="p", answers=("a",), scoring="first_words:5"),
            Generation("a", (), (), "eos", 1),
            right == "+",
        )
        for n, right in enumerate(rights)
    ]
    store = ResultStore(output, label)
    store.benchmark(benchmark, "", predictions)
    results = {benchmark: summarise(predictions)}
    store.save(ModelResult(model="m", k=1, disabled=False, tools_off=(), benchmarks=results))


def paired(output: Path, choices: dict[str, str | None], label: str = "m") -> PairedTest | None:
    return store_paired_tests(output, choices).models[label].benchmarks["b"].paired


def test_the_same_questions_are_compared(tmp_path: Path) -> None:
    output = tmp_path / "e.json"
    save(output, "base", "--+-+")
    save(output, "m", "++++-")
    assert paired(output, {"m": "base"}) == PairedTest(b=3, c=1, p=0.625)
    assert paired(output, {"base": None}) == PairedTest(b=3, c=1, p=0.625)
    save(output, "base", "-----")
    assert paired(output, {"base": None}) == PairedTest(b=4, c=0, p=0.125)  # compared again
    assert paired(output, {"m": None}) is None


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    output = tmp_path / "e.json"
    save(output, "m", "++++-")
    assert paired(output, {"m": "m"}) is None
    save(output, "base", "--+-+", first_id=1)
    assert paired(output, {"m": "base"}) is None
    save(output, "base", "--+-")
    assert paired(output, {"m": "base"}) is None
    save(output, "base", "--+-+", benchmark="c")
    evaluation = store_paired_tests(output, {"m": "base"})
    assert evaluation.models["m"].compared_with == "base"
    assert evaluation.models["m"].benchmarks["b"].paired is None
    (tmp_path / "e.base.parquet").unlink()  # of an earlier version
    assert paired(output, {"m": "base"}) is None
