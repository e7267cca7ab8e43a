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
        ("[1]", "must be an object"),
        (json.dumps({"id": "q"}), "prompt: is missing; answers: is missing; scoring: is missing"),
        (
            row(answer="4"),
            r"answer = '4': there is no such field .*a question has id, prompt, answers, scoring, date",
        ),
        (row(id=7), "id = 7: must be text"),
        (row(prompt=" "), "prompt = ' ': must not be empty"),
        (row(answers="4"), "answers = '4': must be a list"),
        (row(answers=[]), "answers: .*at least 1 item"),
        (row(scoring="f1"), "scoring = 'f1': unknown scoring 'f1'"),
        (row(date="30 January"), "date = .*: must be a date, YYYY-MM-DD, got '30 January'"),
        (row(tool="calculator"), "tool = 'calculator': no such tool; there are .*Calculator"),
        (row(tools_off="QA"), "tools_off = 'QA': must be a list"),
        (row(tools_off=["qa"]), "tools_off = 'qa': no such tool; there are QA"),
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


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "5",
        "[" * 100_000 + "]" * 100_000,
        '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"id": ' + "1" * 5_000 + "}",
        "{'id': 'a'}",
        "\x00",
        row(scoring="first_words:" + "9" * 30),
        row(scoring="first_words:" + "9" * 5_000),
        row(scoring="first_words:1e3"),
        row(scoring=5),
        row(date="2023-02-30"),
        row(date=True),
        row(answers=[5]),
        row(answers=[None]),
        row(answers=None),
        row(answers={"a": 1}),
        row(prompt=["x"]),
        row(id=None),
        row(tools_off=[[]]),
        row(tool=[]),
    ],
)
def test_a_hostile_line_is_refused_in_one_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, row(id="fine"), line)
    with pytest.raises(QuestionError) as error:
        read_benchmark(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    ("answers", "scoring", "usable"),
    [
        (["four", "4"], "number", ("4",)),
        (["four"], "number", ()),
        (["", "  "], "number", ()),
        (["?!", "😀", "yes"], "first_words:5", ("yes",)),
        (["one two three", "one"], "first_words:2", ("one",)),
        (["1" * 27, "1" * 300], "number", ("1" * 27, "1" * 300)),
        (["3/4"], "number", ("3/4",)),
    ],
)
def test_an_odd_answer_does_not_refuse_a_file(
    tmp_path: Path, answers: list[str], scoring: str, usable: tuple[str, ...]
) -> None:
    [question] = read_benchmark(write(tmp_path, row(answers=answers, scoring=scoring))).questions
    assert (question.answers, question.usable_answers) == (tuple(answers), usable)


def test_a_lone_surrogate_is_a_damaged_character(tmp_path: Path) -> None:
    line = json.dumps({**ROW, "prompt": "a \ud83d b", "answers": ["4", "\udcff"]})
    [question] = read_benchmark(write(tmp_path, line)).questions
    assert (question.prompt, question.usable_answers) == ("a \ufffd b", ("4",))


def test_a_byte_order_mark_and_windows_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row().encode() + b"\r\n" + row(id="q2").encode() + b"\r\n")
    assert [question.id for question in read_benchmark(path).questions] == ["q1", "q2"]


def test_a_folder_is_no_question_file(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="cannot be read"):
        read_benchmark(tmp_path)


@pytest.mark.parametrize("field", ["id", "\x1b[31m"])
def test_a_message_about_hostile_names_is_short_and_printable(tmp_path: Path, field: str) -> None:
    question = {"id": "x" * 10_000, "prompt": "p", "answers": ["1"], "scoring": "number"}
    lines = [json.dumps({**question, field: question["id"]})] * 2
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with pytest.raises(QuestionError) as error:
        read_benchmark(tmp_path / "q.jsonl")
    assert len(str(error.value)) < 1_000
    assert str(error.value).isprintable()
