"""The paper's tables for measured models: rows, columns, dashes."""

from __future__ import annotations

import pytest

from pipeline.analysis.result_table import DASH, ResultTable
from pipeline.analysis.scores import TABLES, score_tables
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.results import Evaluation
from tests.pipeline.analysis.results import model, running_text
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def texts(table: ResultTable) -> dict[str, list[str]]:
    return {row.titles[0]: [cell.shown for cell in row.cells] for row in table.rows}


def test_models_are_in_the_papers_order_before_its_own_rows() -> None:
    evaluation = Evaluation(
        models={
            "toolformer": model(svamp=0.5, own=0.25),
            "mine": model(svamp=0.75),
            "base": model(mawps=0.1),
        }
    )
    math, others = score_tables(evaluation)
    assert [name for _, name in math.columns] == ["ASDiv", "SVAMP", "MAWPS"]
    assert texts(math) == {
        "Base model": [DASH, DASH, "10.0"],
        "Toolformer": [DASH, "50.0", DASH],
        "mine": [DASH, "75.0", DASH],
        "GPT-J (paper)": ["7.5", "5.2", "9.9"],
        "GPT-J + CC (paper)": ["9.6", "5.0", "9.3"],
        "Toolformer (disabled) (paper)": ["14.8", "6.3", "15.0"],
        "Toolformer (paper)": ["40.4", "29.4", "44.0"],
    }
    assert [row.paper for row in math.rows] == [False] * 3 + [True] * 4
    assert texts(others) == {"Base model": [DASH], "Toolformer": ["25.0"], "mine": [DASH]}
    best = {row.titles[0]: row.cells[1].best for row in math.rows}
    assert [title for title, marked in best.items() if marked] == ["mine", "Toolformer (paper)"]


def test_a_named_table_is_shown_without_results() -> None:
    evaluation = Evaluation(models={"base": model(svamp=0.5)})
    (mlqa,) = score_tables(evaluation, ["mlqa"], paper=False)
    assert texts(mlqa) == {"Base model": [DASH] * 6}
    assert len(score_tables(evaluation, TABLES)) == 7
    rows = texts(score_tables(evaluation, ["mlqa"])[0])
    assert rows["Toolformer (disabled) (paper)"] == [DASH] * 6, "the paper's figures that are not known"


def test_labels_are_mapped_to_rows() -> None:
    evaluation = Evaluation(models={"gptj": model(nq=0.1), "base": model(nq=0.2), "tf": model(nq=0.3)})
    (table,) = score_tables(evaluation, rows={"gptj": "base", "tf": "toolformer"}, paper=False)
    assert list(texts(table)) == ["Base model (gptj)", "Base model", "Toolformer (tf)"]
    with pytest.raises(ConfigurationError, match="gptk base: no model has this label; the labels are gptj"):
        score_tables(evaluation, rows={"gptk": "base"})


def test_two_labels_with_one_title_are_two_rows() -> None:
    evaluation = Evaluation(models={"toolformer": model(nq=0.1), "Toolformer": model(nq=0.2)})
    (table,) = score_tables(evaluation, paper=False)
    assert [row.cells[1].shown for row in table.rows] == ["10.0", "20.0"]


def test_perplexities() -> None:
    off = model(perplexity=3.756, disabled=True)
    off = off.model_copy(update={"running_texts": {"wikitext": running_text(9.5)}})
    on = model().model_copy(update={"running_texts": {"wikitext": running_text(None)}})
    evaluation = Evaluation(models={"disabled": off, "toolformer": on, "plain": model(perplexity=4)})
    (table,) = score_tables(evaluation)
    shown = texts(table)
    assert shown["Toolformer (disabled)"] == ["9.50", "3.76"]
    assert shown["Toolformer"] == [DASH, DASH]
    assert shown["GPT-J (paper)"] == ["9.9", "10.6"]
    assert [row.titles[0] for row in table.rows[:3] if row.cells[1].best] == ["Toolformer (disabled)"]


def test_running_texts_of_other_files_have_columns_of_their_own() -> None:
    found = {"wikitext:b.raw": running_text(7.5), "wikitext": running_text(9.5)}
    evaluation = Evaluation(models={"base": model().model_copy(update={"running_texts": found})})
    (table,) = score_tables(evaluation)
    assert [name for _, name in table.columns] == [
        "WikiText",
        "held-out texts (paper: CCNet)",
        "wikitext:b.raw",
    ]
    assert texts(table)["Base model"] == ["9.50", DASH, "7.50"]
    assert texts(table)["GPT-J (paper)"] == ["9.9", "10.6", DASH]


def test_intervals_are_stored_or_computed() -> None:
    low, high = wilson(50, 100)
    (table,) = score_tables(Evaluation(models={"base": model(nq=0.5)}), intervals=True, paper=False)
    assert texts(table)["Base model"][1] == f"50.0 ({100 * low:.1f}–{100 * high:.1f})"
