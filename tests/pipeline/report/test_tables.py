"""The report: what it says of a run, and that it says the same each time."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Document, Funnel, Text
from pipeline.evaluation.results import (
    BenchmarkResult,
    Evaluation,
    ModelResult,
    PairedTest,
    RunningTextResult,
)
from pipeline.report.tables import calls_view, kept_calls, result_table

pytestmark = pytest.mark.unit
METHOD = MethodConfig(tools=("Calculator", "WikiSearch", "Calendar"))


def printed(what: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def call(tool: str, position: int, gain: float) -> Call:
    return Call(tool, position, 0.3, "27 + 4", "31", 1.0, 1.0 + gain, 1.0 + gain, gain)


def row(number: int, *calls: Call, text: str = "The sum is 31, as everybody knows.") -> dict[str, Any]:
    funnel = tuple(Funnel(tool, "all", 4, 9, 3, 2, 2) for tool in METHOD.tools[:2])
    where = Document(f"pages.json.gz#{number}", url=f"https://example.org/{number}")
    return Annotation(Text(number, where, text), "annotated", None, calls, funnel).to_row()


def test_shown_calls_pass_their_threshold_and_are_spread_over_the_tools() -> None:
    rows = [row(number, *(call("Calculator", at, 0.7) for at in (0, 10))) for number in range(50)]
    rows += [
        row(50, call("WikiSearch", 10, 1.1)),
        row(51, call("WikiSearch", 10, 0.9), call("Calculator", 10, 0.4)),
    ]
    shown = kept_calls(rows, METHOD)
    assert [one.tool for one in shown] == ["WikiSearch", *["Calculator"] * 5]
    assert all(one.gain >= METHOD.of(one.tool).tau_f for one in shown)


def test_the_same_calls_are_shown_whatever_the_order_of_the_rows() -> None:
    rows = [row(number, call("Calculator", 10, 0.5 + number)) for number in range(200)]
    shown = kept_calls(rows, METHOD)
    assert len(shown) == 6
    assert kept_calls(reversed(rows), METHOD) == shown
    assert max(one.gain for one in shown) < 199, "chosen by gain"


def test_a_call_is_shown_where_it_stands() -> None:
    long = "word " * 60 + "\nThe sum is 31, as everybody" + " knows" * 60
    [inside] = kept_calls([row(1, call("Calculator", long.index(" 31"), 0.7), text=long)], METHOD)
    assert inside.before.startswith("… word word")
    assert inside.before.endswith(" The sum is")
    assert inside.call == " [Calculator(27 + 4) -> 31]"
    assert inside.after.startswith(" 31, as everybody knows")
    assert inside.after.endswith("knows …")
    [first] = kept_calls([row(1, call("Calculator", 0, 0.7))], METHOD)
    assert (
        first.before + first.call + first.after
        == "[Calculator(27 + 4) -> 31] The sum is 31, as everybody knows."
    )
    text = printed(calls_view([first]), width=200)
    assert "[Calculator(27 + 4) -> 31] The sum is 31" in text
    assert "Calculator, +0.70, https://example.org/1" in text
    assert "none" in printed(calls_view([]))


def result(accuracy: float, calls: int, perplexity: float | None, *names: str) -> ModelResult:
    found = BenchmarkResult(accuracy=accuracy, n=80, calls=calls, calls_by_tool={}, failed_calls={})
    return ModelResult(
        model="m",
        k=10,
        disabled=False,
        tools_off=(),
        benchmarks=dict.fromkeys(names, found),
        perplexity=perplexity,
    )


def test_the_table_compares_the_models_in_the_papers_order() -> None:
    evaluation = Evaluation(
        models={
            "other": result(1.0, 80, None, "calendar"),
            "toolformer": result(0.675, 79, 9.4567, "calculator", "calendar"),
            "base": result(0.0125, 0, 9.0, "calculator", "calendar"),
        }
    )
    lines = [
        line.translate({ord("│"): " ", ord("┃"): " "}).split()
        for line in printed(result_table(evaluation)).splitlines()
    ]
    rows = [line for line in lines if line and line[0] in evaluation.models]
    assert rows == [
        ["base", "1.2", "(0)", "1.2", "(0)", "9.00"],
        ["toolformer", "67.5", "(79)", "67.5", "(79)", "9.46"],
        ["other", "–", "100.0", "(80)", "–"],
    ]
    assert ["model", "n", "=", "80", "n", "=", "80", "perplexity"] in lines
    assert ["0.2–6.7", "0.2–6.7"] in lines  # of old files, too, which have no interval
    assert ["95.4–100.0"] in lines


def test_a_cell_has_what_failed_and_the_paired_test() -> None:
    model = result(0.5, 40, None, "sums", "days")
    changes: list[dict[str, object]] = [
        {"failed_calls": {"no_arrow": 2, "deadline": 1}, "paired": PairedTest(b=9, c=3, p=0.146)},
        {"not_asked": {"too_long": 4}, "paired": PairedTest(b=20, c=0, p=2e-6)},
    ]
    names = zip(model.benchmarks, changes, strict=True)
    found = {name: model.benchmarks[name].model_copy(update=update) for name, update in names}
    compared = model.model_copy(update={"benchmarks": found, "compared_with": "plain"})
    text = printed(result_table(Evaluation(models={"toolformer": compared, "plain": model})))
    assert "p against plain (McNemar)" in text
    for line in ("3 failed", "p = 0.146", "4 not asked", "p < 0.001"):
        assert text.count(line) == 1
    assert "McNemar" not in printed(result_table(Evaluation(models={"plain": model})))


def test_brackets_in_names_are_printed_as_they_are() -> None:
    assert "[red]" in printed(result_table(Evaluation(models={"base": result(1, 1, 1, "[red]")})))


def test_perplexities_of_a_running_text_are_a_dash_where_calls_are_on() -> None:
    measured = RunningTextResult(word_perplexity=31.234, token_perplexity=9.9, words=10, lines=2, articles=1)
    models = {
        "disabled": result(0.5, 0, 9.0, "nq").model_copy(update={"running_texts": {"wikitext": measured}}),
        "toolformer": result(0.5, 0, None, "nq").model_copy(
            update={"running_texts": {"wikitext": RunningTextResult.without_perplexity(10, 2, 1)}}
        ),
    }
    text = printed(result_table(Evaluation(models=models)))
    assert "31.23 / 9.90" in text
    assert [line.count("–") for line in text.splitlines() if "toolformer" in line] == [2]


def test_many_benchmarks_are_rows() -> None:
    names = [f"benchmark_{number}" for number in range(12)]
    text = printed(result_table(Evaluation(models={"base": result(0.5, 3, 9.0, *names)})))
    assert all(name in text for name in names)
    assert "…" not in text
    assert [
        line.translate({ord("│"): " "}).split() for line in text.splitlines() if "perplexity" in line
    ] == [["perplexity", "9.00"]]
