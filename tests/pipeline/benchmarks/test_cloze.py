"""LAMA and TempLAMA: templates, masks that are last, and files of another form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import load

pytestmark = pytest.mark.unit

LAMA = "Please complete the following text so that it is factually correct: "
SQUAD = {"masked_sentences": ["The city is [MASK]."], "obj_label": "Oslo", "id": "s1", "sub_label": "Squad"}
TREX = {
    "uuid": "u1",
    "predicate_id": "P19",
    "sub_label": "Ann [Y] Lee",
    "obj_label": "Rome",
    "evidences": [{"masked_sentence": "[MASK] is where Ann was born."}],
}
GOOGLE_RE = {
    "pred": "/people/person/place_of_birth",
    "sub_label": "Bob",
    "obj_label": "Bonn",
    "obj_aliases": ["Bonna"],
    "uuid": "g1",
    "masked_sentences": ["Bob ([MASK], 1920) was a painter ."],
}
RELATIONS = [
    {"relation": "P19", "template": "[X] was born in [Y] ."},
    {"relation": "P413", "template": "[X] plays in [Y] position ."},
]


def lines(path: Path, *rows: dict[str, Any], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return path


def lama(folder: Path) -> Path:
    """A folder as LAMA's: relations, and three of its sets."""
    lines(folder / "relations.jsonl", *RELATIONS)
    lines(folder / "Squad" / "test.jsonl", SQUAD)
    lines(folder / "Google_RE" / "place_of_birth_test.jsonl", GOOGLE_RE)
    lines(folder / "ConceptNet" / "test.jsonl", {"pred": "AtLocation", "masked_sentences": ["a [MASK]"]})
    packed = "".join(json.dumps(row) + "\r\n" for row in [TREX, TREX])
    (folder / "TREx").mkdir()
    (folder / "TREx" / "P19.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + packed.encode()))
    lines(folder / "TREx" / "P413.jsonl", {**TREX, "predicate_id": "P413"})
    return folder


def test_each_set_is_found_in_the_folder_of_lama(tmp_path: Path) -> None:
    folder = lama(tmp_path / "LAMA")
    squad, google_re, trex = (load(f"lama_{name}", folder) for name in ("squad", "google_re", "trex"))
    assert squad.prompt(squad.examples[0]) == LAMA + "The city is"
    assert google_re.prompt(google_re.examples[0]) == LAMA + "Bob was born in"
    assert google_re.examples[0].answers == ("Bonn",)  # not its aliases
    assert [trex.prompt(example) for example in trex.examples] == [LAMA + "Ann [Y] Lee was born in"] * 2
    assert [example.id for example in trex.examples] == ["u1", "u1#2"]
    assert trex.left_out == {"mask not last": 1}
    assert trex.rules.tools_off == {"WikiSearch"}
    assert trex.rules.scoring == "first_words:5"


def test_one_file_finds_the_templates_in_a_folder_above(tmp_path: Path) -> None:
    folder = lama(tmp_path / "LAMA")
    assert len(load("lama_trex", folder / "TREx" / "P19.jsonl.gz").examples) == 2
    (folder / "relations.jsonl").unlink()
    with pytest.raises(BenchmarkFileError, match=r"needs the templates in LAMA's relations\.jsonl"):
        load("lama_trex", folder)


@pytest.mark.parametrize(
    ("sentence", "x"),
    [
        ("The city is [MASK].", "The city is"),
        ("The city is [MASK] .", "The city is"),
        ("The city is [MASK]", "The city is"),
        ("Is the city [MASK] ?! ", "Is the city"),
        ("Those of [MASK]ism follow [MASK].", "Those of [MASK]ism follow"),
        ("The [MASK] city.", None),
        ("He (born [MASK]).", None),
        ("[MASK].", None),
        ("The city is Oslo.", None),
    ],
)
def test_a_mask_must_be_last_but_for_punctuation(tmp_path: Path, sentence: str, x: str | None) -> None:
    path = lines(tmp_path / "squad.jsonl", SQUAD, {**SQUAD, "masked_sentences": [sentence]})
    found = load("lama_squad", path)
    assert [example.x for example in found.examples[1:]] == ([] if x is None else [x])
    assert found.left_out == ({"mask not last": 1} if x is None else {})


@pytest.mark.parametrize(
    ("relation", "number"), [("place_of_birth", 1), ("place_of_death", 1), ("date_of_birth", 0)]
)
def test_dates_of_birth_have_no_mask_at_the_end(tmp_path: Path, relation: str, number: int) -> None:
    other = {**GOOGLE_RE, "pred": f"/people/deceased_person/{relation}"}
    found = load("lama_google_re", lines(tmp_path / "g.jsonl", GOOGLE_RE, other))
    assert len(found.examples) == 1 + number


def test_templama_asks_with_the_year_of_the_query(tmp_path: Path) -> None:
    row = {
        "query": "Ann plays for _X_.",
        "answer": [{"wikidata_id": "Q1", "name": "Rovers"}, {"wikidata_id": "Q2", "name": "United"}],
        "date": "2014",
        "id": "Q3_P54_2014",
        "relation": "P54",
    }
    first = {**row, "query": "_X_ is the chair of Ann.", "relation": "P488"}
    found = load("templama", lines(tmp_path / "test.jsonl", row, first, {**row, "answer": ["Solo"]}))
    assert found.prompt(found.examples[0]) == LAMA + "Ann plays for"
    assert [example.answers for example in found.examples] == [("Rovers", "United"), ("Solo",)]
    assert {example.date for example in found.examples} == {"2014-07-01"}
    assert found.left_out == {"mask not last": 1}
    with pytest.raises(BenchmarkFileError, match="year of four digits"):
        load("templama", lines(tmp_path / "bad.jsonl", {**row, "date": "in 2014"}))


def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFileError, match=r"line 2: lama_squad expects .*found .*those of lama_trex"):
        load("lama_squad", lines(tmp_path / "a.jsonl", SQUAD, TREX))
    lines(tmp_path / "relations.jsonl", *RELATIONS)
    with pytest.raises(BenchmarkFileError, match="predicate_id = 'P20' is not among those of"):
        load("lama_trex", lines(tmp_path / "b.jsonl", {**TREX, "predicate_id": "P20"}))
    with pytest.raises(BenchmarkFileError, match="no question is left"):
        load("lama_trex", lines(tmp_path / "c.jsonl", {**TREX, "predicate_id": "P413"}))
    with pytest.raises(BenchmarkFileError, match="obj_label must be a text, not 5"):
        load("lama_squad", lines(tmp_path / "d.jsonl", {**SQUAD, "obj_label": 5}))
    folder = tmp_path / "twice"
    lines(folder / "Squad.jsonl", SQUAD)
    (folder / "Squad.jsonl.gz").write_bytes(gzip.compress(json.dumps(SQUAD).encode()))
    with pytest.raises(BenchmarkFileError, match="are the same file"):
        load("lama_squad", folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BenchmarkFileError, match="no file here has them"):
        load("templama", empty)
