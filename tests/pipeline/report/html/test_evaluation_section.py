"""What a report says of an evaluation: the table, the paper's rows, and answers to read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.results import EvaluationError
from pipeline.report.html.evaluation_section import evaluation_section
from pipeline.report.html.question_samples import sampled_questions
from tests.pipeline.report.run_folders import BENCHMARK, damage, evaluated

pytestmark = pytest.mark.unit


def both(folder: Path) -> Path:
    file = evaluated(folder / "evaluation.json", "mine", right=(1,))
    evaluated(file, "base", right=())
    return evaluated(file, "toolformer", right=range(6), compare_with="base")


def test_the_table_has_intervals_tests_and_the_papers_figures(tmp_path: Path) -> None:
    section, problems = evaluation_section(both(tmp_path))
    assert problems == []
    assert [row.label for row in section.rows] == ["base", "toolformer", "mine"]
    toolformer = section.rows[1]
    score = toolformer.scores[BENCHMARK]
    assert (score.value, score.n, score.calls, score.paper) == (60.0, 10, 5, 29.4)  # Table 4
    assert score.low == pytest.approx(31.27, abs=0.01)  # Wilson
    assert score.high == pytest.approx(83.18, abs=0.01)
    assert score.p == pytest.approx(2 / 2**6)
    assert section.compared_with == "base"
    assert toolformer.calls_by_tool == {BENCHMARK: {"Calculator": 5}}
    assert section.rows[2].scores[BENCHMARK].paper is None
    assert section.rows[2].scores[BENCHMARK].p is None
    assert [(row.label, row.scores) for row in section.paper] == [
        ("GPT-J", {BENCHMARK: 5.2}),
        ("GPT-J + CC", {BENCHMARK: 5.0}),
        ("Toolformer (disabled)", {BENCHMARK: 6.3}),
        ("Toolformer", {BENCHMARK: 29.4}),
    ]


def test_right_and_wrong_answers_are_shown_with_their_calls(tmp_path: Path) -> None:
    section, _ = evaluation_section(both(tmp_path))
    shown = [question for question in section.questions if question.label == "toolformer"]
    assert len(shown) == 10
    assert [question.right for question in shown[:4]] == [True, True, False, False]
    assert [" [Calculator(" in question.generated for question in shown[:4]] == [True, False, True, False]
    first = next(question for question in shown if question.prompt == "0 + 2 is")
    assert (first.generated, first.answers, first.right) == (" [Calculator(0 + 2) -> 2] 2", ("2",), True)


def test_there_are_fewer_questions_of_each_if_there_are_many_benchmarks(tmp_path: Path) -> None:
    file = evaluated(tmp_path / "e.json", "a", right=(1,), questions=200)
    [few, more] = [sampled_questions(file, ["a"] * labels, [BENCHMARK])[0] for labels in (1, 100)]
    assert len(few) == 40
    assert len(more) == 100 * 16
    assert any(question.right for question in few), "one of 200 is right"


def test_a_long_prompt_is_cut_at_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    row = {"benchmark": "b", "id": "1", "prompt": "x" * 9_000 + "?", "prediction": " a", "answers": ["a"]}
    (tmp_path / "e.m.jsonl").write_text(json.dumps({**row, "right": True, "calls": []}) + "\n")
    [question], problems = sampled_questions(file, ["m"], ["b"])
    assert problems == []
    assert question.prompt.startswith("… x")
    assert question.prompt.endswith("x?")
    assert len(question.prompt) == 1_502


def test_predictions_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    file = evaluated(tmp_path / "e.json", "m", right=(0, 1))
    now = evaluation_section(file)
    rows = pq.read_table(tmp_path / "e.m.parquet").to_pylist()
    (tmp_path / "e.m.parquet").unlink()
    for row in rows:
        del row["annotated"]
    (tmp_path / "e.m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = json.loads(file.read_text())
    del content["models"]["m"]["benchmarks"][BENCHMARK]["interval"]
    file.write_text(json.dumps(content))
    assert evaluation_section(file) == now


def test_missing_and_damaged_predictions_are_sentences(tmp_path: Path) -> None:
    file = both(tmp_path)
    damage(tmp_path / "evaluation.base.parquet")
    (tmp_path / "evaluation.mine.parquet").unlink()
    section, problems = evaluation_section(file)
    assert {question.label for question in section.questions} == {"toolformer"}
    assert len(problems) == 2
    assert problems[0].startswith("The answers of base cannot be read: ")
    assert "evaluation.mine.jsonl" in problems[1]


def test_a_file_without_results_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    with pytest.raises(EvaluationError, match="no results yet"):
        evaluation_section(file)
    file.write_text("{")
    with pytest.raises(EvaluationError, match="not a result of evaluate"):
        evaluation_section(file)


def test_a_model_without_a_tool_of_its_own_says_what_it_lost(tmp_path: Path) -> None:
    file = evaluated(tmp_path / "e.json", "m", right=())
    content = json.loads(file.read_text())
    model = content["models"]["m"]
    model["tools_off"] = ["Abacus"]  # declared in a tools file, which the report does not know
    model["benchmarks"][BENCHMARK]["failed_calls"] = {"deadline": 3}
    file.write_text(json.dumps(content))
    section, _ = evaluation_section(file)
    assert section.rows[0].losses == (f"{BENCHMARK}: 3 calls failed (3 x deadline)",)
