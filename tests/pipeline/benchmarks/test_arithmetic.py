"""ASDiv, SVAMP and MAWPS: prompts to the letter, and answers of every published form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.arithmetic import is_one_number
from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import load

pytestmark = pytest.mark.unit

SVAMP = {
    "ID": "chal-1",
    "Body": "Each pack costs 76 dollars. If there is a discount of 25 dollars",
    "Question": "How much is a pack?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
MAWPS = {
    "iIndex": 1,
    "lEquations": ["X = 70 - 27"],
    "lSolutions": ["43"],
    "sQuestion": "Joan had 70 . How many ? ",
}


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return path


def asdiv_xml(*answers: str, end: str = "\n") -> str:
    problems = end.join(
        f'<Problem ID="p{number}" Grade="1"><Body>A &amp; B have it.</Body><Question>How many? </Question>'
        f"<Solution-Type>Sum</Solution-Type><Answer>{answer}</Answer></Problem>"
        for number, answer in enumerate(answers)
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8" ?>{end}<Machine-Reading-Corpus-File><ProblemSet>'
        f"{problems}</ProblemSet></Machine-Reading-Corpus-File>{end}"
    )


def test_svamp_joins_body_and_question_as_they_are(tmp_path: Path) -> None:
    found = load("svamp", written(tmp_path / "SVAMP.json", [SVAMP, {**SVAMP, "Answer": 3}]))
    assert found.prompt(found.examples[0]) == (
        "Each pack costs 76 dollars. If there is a discount of 25 dollars How much is a pack? The answer is"
    )
    assert [example.answers for example in found.examples] == [("51.0",), ("3",)]
    assert found.rules.scoring == "number"
    assert found.rules.tools_off == frozenset()


@pytest.mark.parametrize(
    ("solutions", "answers"),
    [
        (["43"], ("43",)),
        ([43.0], ("43.0",)),
        ([-3.0], ("-3.0",)),
        ([["43"]], ("43",)),
        (43, ("43",)),
        (["43", "43"], ("43",)),
        (["43", "44"], ()),
        ([], ()),
        (None, ()),
    ],
)
def test_mawps_solutions(tmp_path: Path, solutions: Any, answers: tuple[str, ...]) -> None:
    found = load("mawps", written(tmp_path / "AddSub.json", [{**MAWPS, "lSolutions": solutions}]))
    assert found.examples[0].answers == answers
    assert found.prompt(found.examples[0]) == "Joan had 70 . How many ? The answer is"


def test_mawps_reads_all_files_of_a_folder_in_each_form(tmp_path: Path) -> None:
    folder = tmp_path / "mawps"
    written(folder / "AddSub.json", [MAWPS, {**MAWPS, "iIndex": 2}])
    (folder / "SingleEq.json.gz").write_bytes(gzip.compress(json.dumps([MAWPS]).encode()))
    rows = [{"input": "There are 4 cards. How many?", "target": 4.0}] * 2
    (folder / "SingleOp.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    written(folder / "notes.json", {"about": "MAWPS"})
    written(
        folder / "test" / "testset.json", [{"id": 7, "original_text": "He has 4 . How many ?", "ans": 4.0}]
    )
    found = load("mawps", folder)
    assert [example.id for example in found.examples] == ["1", "2", "1#2", "mawps-4", "mawps-5", "7"]
    assert found.prompt(found.examples[3]) == "There are 4 cards. How many? The answer is"
    assert found.prompt(found.examples[5]) == "He has 4 . How many ? The answer is"
    assert found.examples[5].answers == ("4.0",)


def test_a_folder_that_holds_a_question_twice_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mawps"
    rows = [{"id": n, "original_text": f"How many {n} ?", "ans": "4"} for n in range(3)]
    written(folder / "MAWPS.json", rows)
    written(folder / "testset.json", [rows[1], rows[1], rows[2]])
    assert len(load("mawps", folder).examples) == 6
    assert "2 questions are in several of its files" in caplog.text
    caplog.clear()
    load("mawps", folder / "testset.json")
    assert "several" not in caplog.text


def test_asdiv_keeps_problems_whose_answer_is_not_one_number(tmp_path: Path) -> None:
    path = tmp_path / "ASDiv.xml"
    path.write_bytes(b"\xef\xbb\xbf" + asdiv_xml("9 (apples)", "Mrs. Hilt", "5:3", end="\r\n").encode())
    found, numbers = load("asdiv", path), load("asdiv_number", path)
    assert found.prompt(found.examples[0]) == "A & B have it. How many? The answer is"
    assert [example.answers for example in found.examples] == [("9 (apples)",), (), ()]
    assert [example.id for example in numbers.examples] == ["p0"]
    assert numbers.left_out == {"not one number": 2}
    packed = tmp_path / "ASDiv.xml.gz"
    packed.write_bytes(gzip.compress(asdiv_xml("9").encode()))
    assert len(load("asdiv", packed).examples) == 1


@pytest.mark.parametrize(
    ("answer", "one"),
    [
        ("9 (apples)", True),
        ("1,234 (km)", True),
        ("0.5 (hours)", True),
        ("-3", True),
        ("$5", True),
        ("25%", True),
        ("12 (square feet)", True),
        ("36 (cm^2)", True),
        ("9 apples", True),
        ("9 (rows); 2 (left)", False),
        ("9; 2", False),
        ("9, 2", False),
        ("3 r 2", False),
        ("Mrs. Hilt", False),
        ("yes", False),
        ("5:3", False),
        ("10:25 (AM)", False),
        ("6:01:00 p.m.", False),
        ("6 p.m.", False),
        ("6 AM", False),
        ("Vendor 2", False),
        ("31; 21", False),
        ("5 (amps)", True),
        ("8 (km/hour)", True),
        ("1/2", False),
        ("1 1/2 (cups)", False),
        ("", False),
        (".", False),
    ],
)
def test_one_number(answer: str, one: bool) -> None:
    assert is_one_number(answer) is one


def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [SVAMP, MAWPS])
    with pytest.raises(BenchmarkFileError, match=r"entry 2: svamp expects .*found .*those of mawps"):
        load("svamp", path)
    with pytest.raises(BenchmarkFileError, match="asdiv expects ASDiv's XML; found no XML"):
        load("asdiv", path)
    (tmp_path / "a.xml").write_text(asdiv_xml("9"))
    with pytest.raises(BenchmarkFileError, match=r"svamp expects the fields ID .*found no JSON"):
        load("svamp", tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text("<corpus><text/></corpus>")
    with pytest.raises(BenchmarkFileError, match="expects elements Problem; found <corpus>"):
        load("asdiv", tmp_path / "b.xml")
    (tmp_path / "c.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>')
    with pytest.raises(BenchmarkFileError, match="no entities"):
        load("asdiv", tmp_path / "c.xml")
    with pytest.raises(BenchmarkFileError, match="cannot be read"):
        load("svamp", tmp_path / "none.json")
    with pytest.raises(BenchmarkFileError, match="holds no question"):
        load("svamp", written(tmp_path / "d.json", []))
    with pytest.raises(BenchmarkFileError, match="an answer is a text, a number or a list"):
        load("svamp", written(tmp_path / "e.json", [{**SVAMP, "Answer": True}]))
