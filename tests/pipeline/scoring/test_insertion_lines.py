"""Lines of insertions: what is read from them, what is wrong with them, and what comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.fixtures.small_models import language_model
from pipeline.base.config import CorpusConfig, ModelConfig, ScoreConfig
from pipeline.corpus.files import list_files
from pipeline.engine.loading import load_language_model
from pipeline.method.insertions import Insertion, ScoredInsertion, Window, score_insertions
from pipeline.scoring import insertion_lines
from pipeline.scoring.insertion_lines import InputLine, output_line, parse_insertion, read_parts
from pipeline.scoring.scoring_actor import score_lines

pytestmark = pytest.mark.unit

TEXT = "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days."


def line(fields: Any, number: int = 1) -> InputLine:
    return InputLine(number, fields if isinstance(fields, str) else json.dumps(fields), None)


def test_both_forms_of_a_position_are_the_same() -> None:
    whole = {"id": 7, "text": "ab cd", "position": 2, "insertion": " x", "without_result": " y"}
    halves = {"before": "ab", "after": " cd", "insertion": " x", "without_result": " y"}
    expected = Insertion("ab cd", 2, " x", " y")
    assert parse_insertion(line(whole), "score") == (whole, expected)
    assert parse_insertion(line(halves), "score") == (halves, expected)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ("3", "not an object"),
        ("null", "not an object"),
        ("[" * 5_000, "nested too deep"),
        ({}, "text and position, or before and after"),
        ({"text": "a b", "insertion": "x"}, "position must be"),
        ({"text": "a b", "position": "1", "insertion": "x"}, "position must be"),
        ({"text": "a b", "position": 1.0, "insertion": "x"}, "position must be"),
        ({"text": "a b", "position": True, "insertion": "x"}, "position must be"),
        ({"text": "a b", "position": None, "insertion": "x"}, "position must be"),
        ({"text": 3, "position": 1, "insertion": "x"}, "text must be a string"),
        ({"text": None, "position": 1, "insertion": "x"}, "text must be a string"),
        ({"text": "a b", "position": 1}, "insertion must be a string"),
        ({"text": "a b", "position": 1, "insertion": None}, "insertion must be a string"),
        ({"text": "a b", "position": 1, "insertion": ["x"]}, "insertion must be a string"),
        ({"text": "a b", "position": 1, "insertion": "x", "without_result": 3}, "without_result must be"),
        ({"before": "a", "insertion": "x"}, "before and after"),
        ({"before": "a", "after": 3, "insertion": "x"}, "before and after"),
        ({"text": "a \ud800b", "position": 1, "insertion": "x"}, "text holds half of a surrogate pair"),
        ({"text": "a b", "position": 1, "insertion": "\udc00"}, "insertion holds half of a surrogate pair"),
        ({"text": "a b", "position": 1, "insertion": "x", "score": 1}, "--field"),
    ],
)
def test_a_line_that_is_no_insertion_has_a_reason(fields: Any, reason: str) -> None:
    parsed, problem = parse_insertion(line(fields, 12), "score")
    assert isinstance(problem, str)
    assert reason in problem
    written = json.loads(output_line(parsed, "result", problem, per_token=False))
    assert list(written["result"]) == ["reason"]
    assert written.get("line") == (None if isinstance(fields, dict) else 12)


def test_a_field_of_the_user_s_that_is_no_json_text_is_kept() -> None:
    written = output_line({"id": "\ud800", "n": float("nan")}, "score", ScoredInsertion(gain=1.0), False)
    assert written.encode()
    assert json.loads(written)["id"] == "\ud800"


def test_parts_have_borders_that_the_content_alone_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insertion_lines, "_PART_LINES", 4)
    monkeypatch.setattr(insertion_lines, "_PART_CHARACTERS", 100)
    lines = [f'{{"id": {number}}}' for number in range(10)] + [
        "",
        "x" * 99,
        "y" * 200,
        b"\xff".decode("latin-1"),
    ]
    data = "\n".join(lines).encode("latin-1")
    (tmp_path / "a.jsonl").write_bytes(data)
    [file] = list_files(CorpusConfig(paths=(str(tmp_path),)))
    parts = list(read_parts(file, 3))
    assert [(part.name, [one.number for one in part.lines]) for part in parts] == [
        ("00003-0000000001.jsonl", [1, 2, 3, 4]),
        ("00003-0000000005.jsonl", [5, 6, 7, 8]),
        ("00003-0000000009.jsonl", [9, 10]),
        ("00003-0000000012.jsonl", [12]),
        ("00003-0000000013.jsonl", [13]),
        ("00003-0000000014.jsonl", [14]),
    ]
    assert "not UTF-8" in (parts[-1].lines[0].problem or "")


def test_every_line_comes_out_once_in_order_with_its_own_score() -> None:
    model = language_model("llama", "bytes")
    good = {"text": TEXT, "position": TEXT.index(" 115"), "insertion": " (Note: 48 + 67 = 115)", "id": "g"}
    other = {
        "text": TEXT,
        "position": TEXT.index(" both"),
        "insertion": " x",
        "without_result": " y",
        "id": "o",
    }
    lines = [line(good), line("{"), line(other, 3), InputLine(4, "", "not UTF-8: …"), line(good, 5)]
    config = ScoreConfig(place="position", tokens=3, per_token=True)
    rows = [json.loads(one) for one in score_lines(model, lines, config)]
    assert [row.get("id", row.get("line")) for row in rows] == ["g", 1, "o", 4, "g"]
    assert [row["score"].get("reason", "")[:8] for row in rows] == ["", "not JSON", "", "not UTF-", ""]
    items = [
        Insertion(TEXT, one["position"], one["insertion"], one.get("without_result")) for one in (good, other)
    ]
    expected = score_insertions(model, items, place="position", window=Window(3))
    for row, score in ((rows[0], expected[0]), (rows[2], expected[1]), (rows[4], expected[0])):
        assert row["score"]["gain"] == pytest.approx(score.gain, abs=1e-5)
        assert row["score"]["logprobs_plus"] == pytest.approx(score.logprobs_plus, abs=1e-5)
        assert row["score"].get("l_call") == (score.l_call and pytest.approx(score.l_call, abs=1e-5))
    assert not any(
        "logprobs" in name
        for row in map(json.loads, score_lines(model, lines, ScoreConfig()))
        for name in row["score"]
    )


def test_an_insertion_on_which_the_model_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = language_model("llama", "bytes")
    sound = score_insertions

    def fail(model: Any, insertions: Any, **options: Any) -> list[ScoredInsertion]:
        if any(item.insertion == "bad" for item in insertions):
            raise IndexError("index out of range in self")
        return sound(model, insertions, **options)

    monkeypatch.setattr("pipeline.scoring.scoring_actor.score_insertions", fail)
    lines = [
        line({"text": TEXT, "position": TEXT.index(" 115"), "insertion": text}, number)
        for number, text in enumerate(["a", "b", "bad", "c", "d"], 1)
    ]
    reasons = [json.loads(one)["score"].get("reason") for one in score_lines(model, lines, ScoreConfig())]
    assert reasons == [None, None, "failed: IndexError", None, None]


def test_the_example_of_the_documentation() -> None:
    page = Path("docs/scoring.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)
    table = re.findall(r"^\| ([a-z ]+) \|([^|]*)\|([^|]*)\|([^|]*)\| (.*) \|$", page, re.MULTILINE)
    model = load_language_model(ModelConfig(path="demo/models/annotator", dtype="float32", device="cpu"))
    lines = [line(text, number) for number, text in enumerate(example.splitlines(), 1)]
    rows = [json.loads(one) for one in score_lines(model, lines, ScoreConfig())]
    shown = {name: cells for name, *cells in table}
    for row in rows:
        score = row["score"]
        numbers = [score.get(name) for name in ("l_plus", "l_empty", "l_call")]
        last = f"`{score['reason']}`" if "reason" in score else f"{score['gain']:.2f}"
        expected = ["" if number is None else f"{number:.2f}" for number in numbers]
        assert [cell.strip() for cell in shown[row["id"]]] == [*expected, last]
