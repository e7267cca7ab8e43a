"""The question file format, and what a broken line says."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.questions import Question, QuestionError, read_benchmark

pytestmark = pytest.mark.unit

ROW = {"id": "q1", "prompt": "Two and two\u2028are", "answers": ["4"], "scoring": "number"}
FIELDS: dict[str, Any] = {**ROW, "answers": ("4",)}


def write(folder: Path, *lines: str) -> Path:
    path = folder / "sums.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def row(**changes: Any) -> str:
    return json.dumps({**ROW, **changes}, ensure_ascii=False)


def test_a_file_becomes_a_benchmark_of_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, row(), "", row(id="q2", date="2023-01-30", tool="Calendar"), "")
    benchmark = read_benchmark(path)
    assert benchmark.name == "sums"
    assert benchmark.tools_off == frozenset()
    assert benchmark.questions == (
        Question(**FIELDS),
        Question(**FIELDS | {"id": "q2", "date": "2023-01-30", "tool": "Calendar"}),
    )


def test_tools_that_would_give_a_benchmark_away_are_the_same_in_every_line(tmp_path: Path) -> None:
    off = {"tools_off": ["QA", "MT"]}
    benchmark = read_benchmark(write(tmp_path, row(**off), row(id="q2", tools_off=["MT", "QA"])))
    assert benchmark.tools_off == {"QA", "MT"}
    with pytest.raises(QuestionError, match="tools_off of 'q2' is not that of 'q1'"):
        read_benchmark(write(tmp_path, row(**off), row(id="q2")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "should be an object"),
        (json.dumps({"id": "q"}), "prompt: Field required; answers: Field required; scoring: Field required"),
        (
            row(answer="4"),
            r"answer: Extra inputs .*a question has id, prompt, answers, scoring, date, tool, tools_off",
        ),
        (row(id=7), "id: Input should be a valid string"),
        (row(prompt=" "), "prompt: must be a text that is not blank"),
        (row(answers="4"), "answers: Input should be a valid"),
        (row(answers=[]), "answers: .*at least 1 item"),
        (row(answers=["four"]), "scoring: answer 'four' holds no number"),
        (row(scoring="f1"), "scoring: unknown scoring 'f1'"),
        (row(date="30 January"), "date: must be YYYY-MM-DD or null, got '30 January'"),
        (row(tool="calculator"), "tool: Input should be .*'Calculator'"),
        (row(tools_off="QA"), "tools_off: Input should be a valid array"),
        (row(tools_off=["qa"]), "tools_off.*: Input should be .*'QA'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, row(id="fine"), line)
    with pytest.raises(QuestionError, match=says) as error:
        read_benchmark(path)
    assert str(error.value).startswith(f"{path}, line 2: ")


def test_an_id_is_used_once(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="line 2: id 'q1' is also that of line 1"):
        read_benchmark(write(tmp_path, row(), row()))


def test_a_file_without_questions_or_without_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="holds no question"):
        read_benchmark(write(tmp_path, "", ""))
    with pytest.raises(QuestionError, match="cannot be read"):
        read_benchmark(tmp_path / "missing.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(QuestionError, match="UTF-8"):
        read_benchmark(broken)
