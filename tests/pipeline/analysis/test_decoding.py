"""The table of several k."""

from __future__ import annotations

import pytest

from pipeline.analysis.decoding import decoding_tables
from pipeline.analysis.result_table import DASH
from pipeline.evaluation.results import Evaluation
from tests.pipeline.analysis.results import benchmark, model

pytestmark = pytest.mark.unit


def test_a_row_for_each_k_and_the_papers_where_it_has_the_benchmark() -> None:
    trex = {
        "k10": (10, benchmark(0.6, calls=98, with_call=0.61, without_call=0.0)),
        "k1": (1, benchmark(0.5, calls=40, with_call=0.7, without_call=0.36)),
        "k0": (0, benchmark(0.35, without_call=0.35)),
    }
    models = {
        label: model(k=k).model_copy(update={"benchmarks": {"lama_trex": found, "own": found}})
        for label, (k, found) in trex.items()
    }
    models["disabled"] = model(disabled=True, own=0.3)
    first, own = sorted(decoding_tables(Evaluation(models=models)), key=lambda table: -len(table.rows))
    rows = [(*row.titles, *(cell.shown for cell in row.cells)) for row in first.rows]
    assert rows == [
        ("disabled", "disabled", DASH, DASH, DASH, DASH),
        ("k0", "0", "35.0", DASH, "35.0", "0.0"),
        ("k1", "1", "50.0", "70.0", "36.0", "40.0"),
        ("k10", "10", "60.0", "61.0", "0.0", "98.0"),
        ("Toolformer (paper)", "0", "34.9", DASH, DASH, "0.0"),
        ("Toolformer (paper)", "1", "47.8", "53.0", "44.3", "40.3"),
        ("Toolformer (paper)", "3", "52.9", "58.0", "29.0", "82.8"),
        ("Toolformer (paper)", "10", "53.5", "54.0", "22.5", "98.1"),
    ]
    marked = [(row.titles[1], n) for row in first.rows for n, cell in enumerate(row.cells) if cell.best]
    assert marked == [("10", 0), ("10", 0)], "accuracies of all inputs only"
    assert "T-REx" in first.title
    assert [row.paper for row in own.rows] == [False] * 4
    without = decoding_tables(Evaluation(models=models), paper=False)
    assert not any(row.paper for table in without for row in table.rows)
