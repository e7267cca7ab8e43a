"""MLQA and XQuAD: English paragraphs with questions of another language, from one file or from two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import load

pytestmark = pytest.mark.unit

CONTEXT = {
    "en": "The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading.",
    "de": "Die Verteidigung der Panthers gab nur 308 Punkte ab und belegte den sechsten Platz in der Liga.",
    "zh": "黑豹队的防守只丢了 308分，在联赛中排名第六，同时也以 24 次拦截领先国家橄榄球联盟。",
}
QUESTIONS = {
    "en": ["How many points did the Panthers defense surrender?", "What was their rank in the league?"],
    "de": [
        "Wie viele Punkte gab die Verteidigung der Panthers ab?",
        "Welchen Platz belegten sie in der Liga?",
    ],
    "zh": ["黑豹队的防守丢了多少分？", "黑豹队在联赛中排名第几？"],
}
ANSWERS = {"en": ["308", "sixth"], "de": ["308", "sechsten"], "zh": ["308", "第六"]}


def squad(context: str, question: str, ids: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    """SQuAD's nested form, with a question for each id."""
    qas = [
        {"id": identity, "question": text, "answers": [{"text": answer, "answer_start": 1}] * 2}
        for identity, text, answer in zip(ids, QUESTIONS[question], ANSWERS[context], strict=True)
    ]
    paragraphs = [{"context": CONTEXT[context], "qas": qas}, {"context": CONTEXT[context], "qas": []}]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}, {"paragraphs": []}]}


def flat(context: str, question: str) -> str:
    """JSON lines of one question each, as XGLUE has MLQA."""
    rows = [
        {"context": CONTEXT[context], "question": q, "answers": {"answer_start": [1], "text": [a]}, "id": i}
        for i, q, a in zip("ab", QUESTIONS[question], ANSWERS[context], strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    return path


def test_mlqa_s_own_file_has_both_languages(tmp_path: Path) -> None:
    path = written(tmp_path / "test-context-en-question-de.json", squad("en", "de"))
    found = load("mlqa_de", path)
    assert found.prompt(found.examples[0]) == (
        f"Your task is to answer a question based on the following paragraph: {CONTEXT['en']} "
        f"Now answer the following question in English: {QUESTIONS['de'][0]}"
    )
    assert [example.answers for example in found.examples] == [("308",), ("sixth",)]
    assert found.rules.scoring == "first_words:10"
    assert found.rules.tools_off == frozenset()


@pytest.mark.parametrize("language", ["de", "zh"])
def test_pairs_are_joined_on_the_id(tmp_path: Path, language: str) -> None:
    ours = written(tmp_path / f"xquad.{language}.json", squad(language, language, ("b", "c")))
    english = written(tmp_path / "xquad.en.json", squad("en", "en"))
    written(tmp_path / "xquad.es.json", squad("en", "en"))
    pair = Path(f"{english},{ours}")
    for source in (ours, english, tmp_path, pair):
        found = load(f"xquad_{language}", source)
        [example] = found.examples
        assert (example.id, example.x, example.q, example.answers) == (
            "b",
            CONTEXT["en"],
            QUESTIONS[language][0],
            ("sixth",),
        )
        assert found.left_out == {"no English paragraph with its id": 1}


def test_mlqa_as_lines_is_joined_with_its_english_lines(tmp_path: Path) -> None:
    ours = written(tmp_path / "MLQA.de.jsonl", flat("de", "de"))
    with pytest.raises(BenchmarkFileError, match=r"English paragraphs.*context de, questions de"):
        load("mlqa_de", ours)
    written(tmp_path / "MLQA.en.jsonl", flat("en", "en"))
    assert [example.answers for example in load("mlqa_de", ours).examples] == [("308",), ("sixth",)]


def test_the_folder_of_mlqa_prefers_its_own_pairing(tmp_path: Path) -> None:
    for context in ("en", "de"):
        for question in ("en", "de"):
            name = f"test-context-{context}-question-{question}.json"
            written(tmp_path / "test" / name, squad(context, question))
    assert load("mlqa_de", tmp_path / "test").examples[0].q == QUESTIONS["de"][0]
    written(tmp_path / "dev" / "dev-context-en-question-de.json", squad("en", "de"))
    with pytest.raises(BenchmarkFileError, match="found 2: dev-context"):
        load("mlqa_de", tmp_path)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", squad("en", "de"))
    with pytest.raises(BenchmarkFileError, match=r"questions in 'zh'.*context en, questions de"):
        load("mlqa_zh", path)
    with pytest.raises(BenchmarkFileError, match=r"mlqa_de expects the fields .*found the fields question"):
        load("mlqa_de", written(tmp_path / "b.json", [{"question": "q", "answer": ["a"]}]))
    with pytest.raises(BenchmarkFileError, match="expected paragraphs with context and qas"):
        load("mlqa_de", written(tmp_path / "c.json", {"data": [{"paragraphs": [{"qas": [5]}]}]}))
    written(tmp_path / "x.de.json", squad("de", "de"))
    written(tmp_path / "x.en.json", squad("en", "en", ("c", "d")))
    with pytest.raises(BenchmarkFileError, match="have no id in common"):
        load("mlqa_de", tmp_path / "x.de.json")
    with pytest.raises(BenchmarkFileError, match="found 0"):
        load("mlqa_es", tmp_path)
