"""The entries of `--benchmarks`: names, dates and tools of published benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.evaluation.inputs import read_inputs
from pipeline.evaluation.results import EvaluationError

pytestmark = pytest.mark.unit


def test_dateset_s_questions_have_their_own_days() -> None:
    [benchmark] = read_inputs((Path("dateset=3"),), (), first_line=True).benchmarks
    assert (benchmark.name, len(benchmark.questions), benchmark.first_line) == ("dateset", 9_400, True)
    question = benchmark.questions[0]
    assert question.date is not None
    assert question.scoring == "first_words:5"
    assert question.prompt.startswith("Answer the following question: How many days ago was ")


def test_a_question_without_an_answer_and_without_a_mark_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl"
    rows = [{"question": "who", "answer": []}, {"question": "who\ud800", "answer": ["A"]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    [benchmark] = read_inputs((Path(f"nq={path}"),), (), first_line=False).benchmarks
    assert [question.usable_answers for question in benchmark.questions] == [(), ("A",)]
    assert benchmark.tools_off == {"QA"}
    assert benchmark.questions[1].prompt == "Answer the following question: who\ufffd?"


def test_two_results_need_two_names(tmp_path: Path) -> None:
    wiki = tmp_path / "wiki.raw"
    wiki.write_text("The river is long.")
    own = tmp_path / "wikitext.jsonl"
    own.write_text(json.dumps({"id": "a", "prompt": "p", "answers": ["1"], "scoring": "number"}))
    with pytest.raises(EvaluationError, match="two are called wikitext"):
        read_inputs((own, Path(f"wikitext={wiki}")), (), first_line=False)
    assert list(read_inputs((Path(f"wikitext={wiki}"),), (), first_line=False).texts) == ["wikitext"]
