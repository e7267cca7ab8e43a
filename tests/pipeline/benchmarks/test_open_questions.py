"""WebQuestions, NQ and TriviaQA in each published form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import load

pytestmark = pytest.mark.unit

LISP = '(list (description "A \\"B\\"") (description C))'
TRIVIA = {"Value": "A", "Aliases": ["B"], "HumanAnswers": ["C"], "NormalizedAliases": ["b"]}


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"question": "who", "answer": ["A", "B", "A"]}, ("A", "B")),
        ({"question": "who", "answers": ["A"], "id": "7"}, ("A",)),
        ({"qId": "w1", "qText": "who", "answers": ["A"]}, ("A",)),
        ({"url": "u", "utterance": "who", "targetValue": LISP}, ('A "B"', "C")),
        ({"question": "who", "answer": "A"}, ("A",)),
        ({"question": "who", "answer": [["A"], [1]]}, ("A", "1")),
        ({"question": "who", "answer": {"value": "A", "aliases": ["B"], "normalized": ["b"]}}, ("A", "B")),
        ({"QuestionId": "tc_1", "Question": "who", "Answer": TRIVIA}, ("A", "B", "C")),
        ({"question": "who", "answer": []}, ()),
    ],
)  # fmt: skip
def test_each_form_of_a_record(tmp_path: Path, row: dict[str, Any], answers: tuple[str, ...]) -> None:
    other = {**row, **{name: ["Z"] for name in ("answer", "answers") if name in row}}
    for text in (json.dumps([row, other]), json.dumps(row) + "\r\n\r\n" + json.dumps(other)):
        found = load("webquestions", written(tmp_path / "q.json", text))
        assert found.prompt(found.examples[0]) == "Answer the following question: who?"
        assert found.examples[0].answers == answers
        assert len(found.examples) == 2
    assert found.rules.tools_off == {"QA"}
    assert found.rules.scoring == "first_words:20"


def test_trivia_qa_s_own_file_is_one_object(tmp_path: Path) -> None:
    entry = {"QuestionId": "tc_33", "Question": "Which?", "Answer": {"Value": "A", "Aliases": ["A", "B"]}}
    content = json.dumps({"Data": [entry], "Domain": "Web", "Version": 1.0}, indent=1)
    found = load("triviaqa", written(tmp_path / "web-dev.json", content))
    assert [(e.id, e.q, e.answers) for e in found.examples] == [("tc_33", "Which?", ("A", "B"))]


def test_dpr_s_tables(tmp_path: Path) -> None:
    many = [f"alias {number}" for number in range(372)]
    rows = [
        "who is it\t['A', \"B's\", '🚁']",
        "",
        '"say ""hi"""\t"[""B\'s"", \'C\']"',
        f"which\t{many!r}",
        "none\t[]",
    ]
    content = "\r\n".join(rows) + "\r\n"
    path = tmp_path / "trivia-test.qa.csv.gz"
    path.write_bytes(gzip.compress(content.encode()))
    found = load("triviaqa", path)
    assert [example.q for example in found.examples] == ["who is it?", 'say "hi"?', "which?", "none?"]
    assert found.examples[0].answers == ("A", "B's", "🚁")
    assert found.examples[1].answers == ("B's", "C")
    assert len(found.examples[2].answers) == 372
    assert found.examples[3].answers == ()
    header = written(tmp_path / "h.tsv", "question\tanswers\nwho\t['A']\n")
    assert len(load("nq", header).examples) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "who\tA\n", "line 1: nq expects a question, a tab and a list .*found 'A'"),
        ("a.csv", "who,['A']\n", "found 1 cells"),
        ("a.csv", "who\t\"['A']\n", "no table of cells"),
        ("a.csv", "\n", "holds no question"),
        ("a.csv", "who\t[__import__('os')]\n", "found "),
        ("a.jsonl", '{"question": "who"}\n', "found the fields question$"),
        ("a.jsonl", '{"question": "who", "answer": []}\n', "no question has one"),
        ("a.jsonl", '{"question": 5, "answer": ["A"]}\n', "question must be a text"),
        ("a.jsonl", '{"question": "a", "answer": ["A"]}\n{"question": ', "line 2: nq expects .*no JSON"),
        ("a.jsonl", '{"ID": "1", "Body": "b", "Question": "q", "Answer": 3}\n', "those of svamp"),
        ("a.json", '"text"', "nq expects .*found 'text'"),
        ("a.json", "[5]", "must be an object, not 5"),
        ("a.json", "[" * 100_000, "found no JSON"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(BenchmarkFileError, match=message) as error:
        load("nq", written(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"question": "who", "answer": ["A"]}).encode())[:-4])
    with pytest.raises(BenchmarkFileError, match="damaged file"):
        load("nq", path)
    path = tmp_path / "nq.jsonl"
    path.write_bytes(b'{"question": "\xff", "answer": ["A"]}')
    with pytest.raises(BenchmarkFileError, match="not UTF-8"):
        load("nq", path)
    folder = tmp_path / "nq"
    folder.mkdir()
    with pytest.raises(BenchmarkFileError, match=r"nq wants one \.json or .* file, and there are 0"):
        load("nq", folder)
