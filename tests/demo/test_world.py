"""The small world: properties of its pages, its questions and the pretraining documents."""

from __future__ import annotations

import gzip
import json
import re
from datetime import date
from pathlib import Path
from random import Random

import pytest

from demo import arithmetic, dates, facts, generate, german, pages, pretraining
from demo.pages import MarkedPage
from pipeline.method.selection import identify_language

pytestmark = pytest.mark.unit

DEMO = Path(generate.__file__).parent


def pages_written() -> list[dict[str, str]]:
    files = sorted((DEMO / "pages").glob("*.json.gz"))
    return [json.loads(line) for file in files for line in gzip.open(file, "rt", encoding="utf-8")]


def questions(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "questions" / f"{name}.jsonl").read_text().splitlines()]


def test_the_committed_files_are_what_the_generator_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--output", str(tmp_path)])
    generate.main()
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) >= generate.PAGE_FILES + 6
    for path in written:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(tmp_path / path, "rb") as new, opened(DEMO / path, "rb") as committed:
            assert new.read() == committed.read(), path


def test_pages_have_ccnets_fields_and_some_dated_urls() -> None:
    rows = pages_written()
    assert len(rows) >= 2_000
    fields = (
        "url date_download digest length nlines source_domain title raw_content cc_segment original_nlines "
        "original_length language language_score perplexity bucket"
    )
    assert all(" ".join(row) == fields for row in rows)
    dated = sum(bool(re.search(r"/20\d\d[/-]\d\d[/-]\d\d", row["url"])) for row in rows)
    assert 0.5 < dated / len(rows) < 0.7
    assert any("/item/" in row["url"] for row in rows)


def test_every_calculator_call_of_the_pages_is_correct() -> None:
    calls = [
        call for made in generate.ground_truth().values() for call in made.calls if call.tool == "Calculator"
    ]
    assert len(calls) > 1_000
    assert all(arithmetic.evaluate(call.input) == int(call.result) for call in calls)


def test_the_ground_truth_has_the_written_pages() -> None:
    truth = generate.ground_truth()
    assert set(truth) == {row["raw_content"] for row in pages_written()}
    for text, page in truth.items():
        for call in page.calls:
            assert text[call.position] == " ", (text, call)


def test_no_page_answers_a_question() -> None:
    text = "\n".join(row["raw_content"] for row in pages_written())
    held_out = [entity.name for entity in generate.World().held_out]
    rows = questions("wikisearch") + questions("qa")
    assert all(name in row["prompt"] for name, row in zip(held_out, rows, strict=True))
    assert [name for name in held_out if name in text and re.search(rf"\b{name}\b", text)] == []
    calls = [
        call for made in generate.ground_truth().values() for call in made.calls if call.tool == "Calculator"
    ]
    used = {arithmetic.canonical(call.input) for call in calls}
    for row in questions("calculator"):
        numbers = re.findall(r"\d+", row["prompt"])
        expressions = [f" {sign} ".join(order) for sign in "+-*/" for order in (numbers, numbers[::-1])]
        right = [e for e in expressions if arithmetic.evaluate(e) == int(row["answers"][0])]
        assert right, row
        assert not used & {arithmetic.canonical(e) for e in right}, row


def test_no_page_has_the_questions_sentences() -> None:
    text = "\n".join(row["raw_content"] for row in pages_written())
    rows = questions("mt")
    assert len({row["answers"][0] for row in rows}) == len(rows)
    for row in rows:
        [wording] = [w for w in german.HELD_OUT if row["prompt"].startswith(w.partition("{g}")[0])]
        before, _, after = wording.partition("{g}")
        assert row["prompt"].removeprefix(before).removesuffix(after) not in text


def test_no_page_has_a_plain_question_with_its_answer() -> None:
    text = "\n".join(" ".join(row["raw_content"].split()) for row in pages_written())
    rows = questions("plain")
    assert len({row["prompt"] for row in rows}) == len(rows) == generate.QUESTIONS
    for row in rows:
        [answer] = row["answers"]
        assert f"{row['prompt']} {answer}" not in text
        assert answer not in re.findall(r"\w+", row["prompt"])


def test_calendar_questions_ask_for_six_things_in_many_wordings() -> None:
    rows = questions("calendar")
    wordings = [wording for each in dates.HELD_OUT.values() for wording in each]
    assert {row["prompt"] for row in rows} == set(wordings)
    assert len(wordings) == len(set(wordings)) == 48
    for row in rows:
        [kind] = [kind for kind, each in dates.HELD_OUT.items() if row["prompt"] in each]
        when = date.fromisoformat(row["date"])
        assert row["answers"] == [kind.format(**dates.parts(when))]
        assert row["answers"][0] in dates.sentence(when)  # the tool's result
        assert when.year >= 2024  # later than all pages


def test_the_training_texts_have_the_words_of_the_calendar_questions_but_no_prompt() -> None:
    text = "\n".join(" ".join(row["raw_content"].split()) for row in pages_written())
    rng = Random(0)
    pretrained = " ".join(part for _ in range(300) for part, _ in pretraining.document(rng))
    known = set(re.findall(r"\w+", f"{text} {pretrained}".lower()))
    for row in questions("calendar"):
        assert row["prompt"] not in text
        assert set(re.findall(r"\w+", row["prompt"].lower())) <= known, row["prompt"]


def test_german_sentences_are_grammatical() -> None:
    rng = Random(0)
    english = {phrase.german: phrase.english for phrase in (german.sentence(rng) for _ in range(10_000))}
    letters = [text for text in english if "einen neuen Brief" in text]
    assert letters
    assert all("a new letter" in english[text] for text in letters)
    wrong = (
        "ein neuen",
        "eine neuen",
        "einen neue ",
        "den neue ",
        "das neuen",
        "die neuen",
        "a old",
        "an new",
    )
    assert not [text for pair in english.items() for text in pair if any(bad in text for bad in wrong)]
    assert all(identify_language(text)[0] == "de" for text in list(english)[:500])


def test_no_page_uses_the_questions_wordings() -> None:
    statements = {wording for wordings in facts.STATEMENTS.values() for wording in wordings}
    asked = {wording for wordings in facts.HELD_OUT.values() for wording in wordings}
    assert not {wording.split("{s}")[0] + "|" + wording.split("{s}")[1] for wording in asked} & statements
    closings = (
        arithmetic.GAINED + arithmetic.LOST + arithmetic.MULTIPLIED + arithmetic.DIVIDED + arithmetic.PAID
    )
    for wordings in arithmetic.HELD_OUT.values():
        assert not any(closing.startswith(wording) for wording in wordings for closing in closings)


def test_pretraining_results_are_random() -> None:
    rng = Random(0)
    calls = [
        call
        for _ in range(500)
        for call in pretraining.passage(rng, "Calculator").calls
        if call.tool == "Calculator"
    ]
    right = sum(arithmetic.evaluate(call.input) == int(call.result) for call in calls)
    assert right / len(calls) < 0.05


def test_pretraining_does_not_teach_german() -> None:
    for seed in range(200):
        correct, wrong = (
            MarkedPage.parse(pages.german_sentences(Random(seed), correct=correct)[0]).calls[0]
            for correct in (True, False)
        )
        assert wrong.input == correct.input
        assert wrong.result != correct.result


def test_marks_are_separated_into_text_and_calls() -> None:
    marked = MarkedPage.parse("Now it has" + pages.mark("Calculator", "1 + 2", "3") + " 3 eggs.")
    assert marked.text == "Now it has 3 eggs."
    [call] = marked.calls
    assert (call.position, call.tool, call.input, call.result) == (10, "Calculator", "1 + 2", "3")
