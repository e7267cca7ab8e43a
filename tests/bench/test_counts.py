"""Files of the published forms, made here in full size: each loader counts them as is known of the originals.

The rows that decide a count are of each kind that the originals have: answers that are too long or
symbols only, masks that are not last, answers of several numbers, aliases by the hundred.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bench.counts import KNOWN, Counts, count, main, verdict
from pipeline.benchmarks.wikitext import wikitext as running_text

pytestmark = pytest.mark.unit

LONG = "word " * 21
CONTEXT = "The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading."
QUESTIONS = {
    "en": "How many points did the Panthers defense surrender?",
    "es": "¿Cuántos puntos dejaron escapar en defensa los Panthers durante la temporada?",
    "de": "Wie viele Punkte gab die Verteidigung der Panthers in dieser Saison ab?",
    "hi": "पैंथर्स डिफ़ेंस ने इस सीज़न में कितने अंक दिए?",
    "vi": "Đội thủ của Panthers đã thua bao nhiêu điểm trong mùa giải này?",
    "zh": "黑豹队的防守在本赛季丢了多少分？",
    "ar": "كم نقطة تخلى عنها دفاع فريق بانثرز في هذا الموسم؟",
}
CONTEXTS = {"en": CONTEXT, **{code: 3 * f"{text} " for code, text in QUESTIONS.items() if code != "en"}}


def as_lines(rows: Iterable[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def as_array(rows: Sequence[Any]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False)


def dpr(rows: Iterable[tuple[str, list[str]]]) -> str:
    """DPR's table: tab-separated, with CSV quoting, answers as a Python list."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", lineterminator="\r\n").writerows((q, repr(a)) for q, a in rows)
    return file.getvalue()


def trivia() -> list[tuple[str, list[str]]]:
    unusable = [["🚁"], ["?!"], [], [LONG], [""], ["—", "♯"], [LONG, "£"]]
    many = [f"alias {number}" for number in range(372)]
    usable = [["A's", 'the "B"'], ["🚁", "Helicopter"], [LONG, "word " * 20], ["½"], ["№ 1"], ["C\t#"]]
    rows = [*unusable, many, *usable * 2_000]
    return [(f'"Which" one, number {n}', answers) for n, answers in enumerate(rows[:11_313])]


def webquestions() -> str:
    rows = [
        {"qId": f"wqs{n:06}", "answers": [LONG if n < 10 else f"Answer {n}"], "qText": f"what is {n}?"}
        for n in range(2_032)
    ]
    return as_array(rows)


def natural_questions() -> str:
    answers = [["---"], [")"], ["), starting on"], ["*", "times"], ["異世界はスマートフォンとともに"]]
    answers += [["54\u00a0Mbit/s"], ["Algeria\u200e"], ["17.32%", "23%"], ["-ase"]]
    rows = [{"question": f"who is {n}", "answer": answers[min(n, 8)]} for n in range(3_610)]
    return "\ufeff" + as_lines(rows)


def efficient_qa(number: int) -> str:
    more = {"answer_and_def_correct_predictions": ["A"], "number_of_predictions": 3}
    return as_lines(({"question": f"who is {n}", "answer": ["A"], **more} for n in range(number)), "\r\n")


def svamp() -> str:
    rows = [
        {
            "ID": f"chal-{n}",
            "Body": f"He has {n} cards" + ("" if n <= 358 else "."),
            "Question": "How many?",
            "Equation": "( 1.0 )",
            "Answer": n / 4,
            "Type": "Sum",
        }
        for n in range(1, 1_001)
    ]
    return as_array(rows)


def asdiv() -> str:
    other = [
        "36 (years old); 12 (years old)", "31; 21", "Book store", "Vendor 2", "10:1", "6:01:00 p.m.",
        "6 p.m.", "10:30 (AM)", "1/2", "1 1/2 (cups)", "3 r 2", "yes",
    ]  # fmt: skip
    one = [
        "9 (apples)",
        "22.84 (dollars)",
        "12",
        "3 (km/hour)",
        "0 (Lemon Head)",
        "-3 (degrees)",
        "1,234 (km^2)",
    ]
    answers = (other * 20)[:221] + (one * 300)[:2_084]
    problems = "\n".join(
        f'\t<Problem ID="nluds-{n:04}" Grade="6" Class="self-defined unit" Source="s">\n'
        f"\t\t<Body>It is &lt; {n}.</Body>\n\t\t<Question>How many?</Question>\n"
        f'\t\t<Solution-Type Subgoal-1="Sum">Ratio</Solution-Type>\n\t\t<Answer>{answer}</Answer>\n'
        "\t\t<Formula>x</Formula>\n\t</Problem>"
        for n, answer in enumerate(answers, start=1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<Machine-Reading-Corpus-File>\n\n<ProblemSet>\n'
        f"{problems}\n</ProblemSet>\n\n</Machine-Reading-Corpus-File>\n"
    )


def mawps(number: int, solution: Any) -> str:
    rows = [
        {"iIndex": n, "lEquations": ["X = 1"], "lSolutions": [solution], "sQuestion": f" How many {n} ? "}
        for n in range(number)
    ]
    return as_array(rows)


def mwptoolkit(number: int = 2_373) -> str:
    answers: list[Any] = ["0.25"] * 395 + [-3.0] * 16 + [12.0] * 1_962
    rows = [
        {
            "id": n,
            "original_text": f"How many {n} ?",
            "segmented_text": "",
            "equation": "x=1",
            "ans": answers[n],
        }
        for n in range(number)
    ]
    return as_array(rows)


def input_target(number: int) -> str:
    return as_lines({"input": f"How many {n}?", "target": 4.0} for n in range(number))


def squad(language: str) -> str:
    """48 articles of 5 paragraphs, 1,190 questions."""
    names = iter(range(1_190))
    articles = []
    for article in range(48):
        paragraphs = []
        for paragraph in range(5):
            ids = islice(names, 4 + (article * 5 + paragraph < 230))
            answer = {"answer_start": 0, "text": "308"}
            qas = [{"id": str(n), "question": QUESTIONS[language], "answers": [answer]} for n in ids]
            paragraphs.append({"context": CONTEXTS[language], "qas": qas})
        articles.append({"title": "t", "paragraphs": paragraphs})
    return json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False)


def wikitext() -> str:
    heads = [f" = Title {n} = \n" for n in range(62)]
    body = [" \n", " = = Part = = \n", " Some text , 5 = 5 . \n", " = = = Detail = = = \n"]
    lines = [line for head in heads for line in (" \n", head, *body)]
    return "".join(lines + [" \n"] * (4_358 - len(lines)))


def lama(folder: Path) -> None:
    """LAMA's folder: three sets, relations, and a set that is not used."""
    last, inside = "It is [MASK].", "The [MASK] color was used."
    twice, spaced = "In [MASK] schools it is [MASK].", "The show was  [MASK] ."
    sentences = [last] * 209 + [twice] * 3 + [spaced] + [inside] * 91 + ["[MASK] is needed."]
    squad = [{"masked_sentences": [s], "obj_label": "a", "id": str(n)} for n, s in enumerate(sentences)]
    write(folder / "Squad" / "test.jsonl", as_lines(squad))
    for relation, number in (("place_of_birth", 2_937), ("place_of_death", 766), ("date_of_birth", 1_825)):
        fact = {"pred": f"/people/person/{relation}", "sub_label": "Ann", "obj_label": "Bonn", "uuid": "u"}
        facts = [{**fact, "masked_sentences": [inside], "obj_aliases": ["B"]}] * number
        write(folder / "Google_RE" / f"{relation}_test.jsonl", as_lines(facts))
    inner = {"P413": 952, "P106": 958, "P136": 931, "P27": 966, "P140": 473}
    outer = {f"P{number}": 808 for number in range(1_000, 1_022)} | {"P19": 825}
    relations = []
    for relation, number in {**inner, **outer}.items():
        template = "[X] plays [Y] music ." if relation in inner else "[X] was born in [Y] ."
        relations.append({"relation": relation, "template": template, "label": "l", "type": "N-1"})
        fact = {
            "uuid": "u",
            "sub_label": "Ann",
            "obj_label": "Bonn",
            "predicate_id": relation,
            "evidences": [],
        }
        write(folder / "TREx" / f"{relation}.jsonl", as_lines([fact] * number))
    relations.append({"relation": "P190", "template": "[X] and [Y] are twin cities ."})
    write(folder / "relations.jsonl", as_lines(relations))
    concepts = {
        "sub": "a",
        "obj": "b",
        "pred": "IsA",
        "masked_sentences": [last],
        "obj_label": "b",
        "uuid": "u",
    }
    write(folder / "ConceptNet" / "test.jsonl", as_lines([concepts] * 9))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "file", "content", "known"),
    [
        ("triviaqa", "trivia-test.qa.csv.gz", lambda: dpr(trivia()), "DPR test"),
        ("triviaqa", "dev.csv", lambda: dpr(trivia()[7:8_844]), "DPR dev"),
        ("webquestions", "test.json", webquestions, "test"),
        ("nq", "NQ-open.dev.jsonl", natural_questions, "dev"),
        ("nq", "NQ-open.efficientqa.dev.1.1.jsonl", lambda: efficient_qa(1_800), "efficientqa dev"),
        ("nq", "NQ-open.efficientqa.test.1.1.jsonl", lambda: efficient_qa(1_769), "efficientqa test"),
        ("svamp", "SVAMP.json", svamp, "SVAMP.json"),
        ("asdiv", "ASDiv.xml", asdiv, "ASDiv.xml"),
        ("asdiv_number", "ASDiv.xml.gz", asdiv, "ASDiv.xml"),
        ("mawps", "AddSub.json", lambda: mawps(395, "43"), "AddSub"),
        ("mawps", "SingleEq.json", lambda: mawps(508, 43.0), "SingleEq"),
        ("mawps", "SingleOp.jsonl", lambda: input_target(562), "SingleOp"),
        ("mawps", "MultiArith.json", lambda: mawps(600, -3.0), "MultiArith"),
        ("mawps", "MAWPS.json", mwptoolkit, "MWPToolkit"),
        ("mawps", "trainset.json", lambda: mwptoolkit(1_898), "MWPToolkit train"),
        ("mawps", "validset.json", lambda: mwptoolkit(237), "MWPToolkit valid"),
        ("mawps", "testset.json", lambda: mwptoolkit(238), "MWPToolkit test"),
        ("mawps", "mawps_single.json", lambda: mawps(1_987, 3.0), "one unknown"),
        ("wikitext", "wiki.test.raw", wikitext, "WikiText-2 test"),
    ],
)
def test_a_file_of_full_size(
    tmp_path: Path, name: str, file: str, content: Callable[[], str], known: str
) -> None:
    counts = count(name, write(tmp_path / file, content()))
    assert counts.agrees(KNOWN[name][known])
    assert verdict(name, counts) == f"as {known}"


def test_wikitext_has_its_articles(tmp_path: Path) -> None:
    found = running_text(write(tmp_path / "wiki.test.raw.gz", wikitext()))
    assert (found.lines, found.articles) == (4_358, 62)


@pytest.mark.parametrize("name", ["lama_squad", "lama_google_re", "lama_trex"])
def test_the_folder_of_lama(tmp_path: Path, name: str) -> None:
    lama(tmp_path)
    counts = count(name, tmp_path)
    [known] = KNOWN[name].values()
    assert (counts.questions, dict(counts.left_out)) == (known.questions, dict(known.left_out))


@pytest.mark.parametrize("language", ["es", "de", "hi", "vi", "zh", "ar"])
def test_xquad_is_joined(tmp_path: Path, language: str) -> None:
    for code in (language, "en"):
        write(tmp_path / f"xquad.{code}.json", squad(code))
    expected = Counts(1_190, 0)
    assert count(f"xquad_{language}", tmp_path / f"xquad.{language}.json") == expected
    assert count(f"xquad_{language}", tmp_path) == expected


def test_the_table_names_the_file_whose_counts_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "SVAMP.json", svamp())
    short = write(tmp_path / "short.json", as_array(json.loads(svamp())[:3]))
    main(["dateset=3", f"svamp={path}", f"svamp={short}"])
    shown = capsys.readouterr().out
    assert "as any seed" in shown
    assert "as SVAMP.json" in shown
    assert "differ: SVAMP.json 1,000" in shown
    assert verdict("mlqa_de", Counts(5)) == "none"


@pytest.mark.parametrize(
    ("entry", "message"), [("questions.jsonl", "give NAME=PATH"), ("svamp=none.json", "cannot be read")]
)
def test_a_wrong_entry_ends_with_one_sentence(
    entry: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([entry])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
