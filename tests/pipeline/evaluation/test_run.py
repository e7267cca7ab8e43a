"""Evaluation as a whole: a real small model, real tools, question files and held-out pages."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest

from pipeline.base.config import EvaluateConfig, GenerateConfig, ModelConfig
from pipeline.evaluation.questions import Benchmark, Question, QuestionError
from pipeline.evaluation.results import Evaluation, EvaluationError, ModelResult, add_result
from pipeline.evaluation.run import evaluate, evaluate_model
from tests.pipeline.inference.test_decode_batch import random_model
from tests.pipeline.scripted import ScriptedModel
from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit
TOOLS = LocalTools({"Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())

SUM = "The answer to 27 + 4 is"
DAY = "Today is"
PATHS = [
    f"{SUM}| [|Calculator|(|27 + 4|)| ->| 31|]| 31.|\n|32",
    f"{SUM}| thirty.",
    f"{DAY}| [|Calendar|(|)| ->",
    f"{DAY}| [Calendar() -> Today is Monday, January 30, 2023.]| Monday.",
    f"{DAY}| some day.",
]
BENCHMARKS = [
    Benchmark(
        "mixed",
        (
            Question(id="a", prompt=SUM, answers=("31",), scoring="number"),
            Question(id="b", prompt=DAY, answers=("Monday",), scoring="first_words:5", date="2023-01-30"),
            Question(id="c", prompt=SUM, answers=("32",), scoring="number"),
        ),
    )
]


def test_a_model_is_scored_on_its_first_line_with_the_calls_it_made() -> None:
    config = EvaluateConfig(batch_size=2)
    result, predictions = evaluate_model("m", config, ScriptedModel("words", PATHS), BENCHMARKS, TOOLS)
    found = result.benchmarks["mixed"]
    assert (found.accuracy, found.n, found.calls) == (pytest.approx(2 / 3), 3, 3)
    assert found.calls_by_tool == {"Calculator": 2, "Calendar": 1}
    assert found.failed_calls == {}
    assert [(one.question.id, one.generation.text, one.right) for one in predictions] == [
        ("a", " 31.", True),
        ("b", " Monday.", True),
        ("c", " 31.", False),
    ]
    assert (result.perplexity, result.held_out) == (None, None)


def test_disabled_and_switched_off_tools_reach_the_decoder() -> None:
    model = ScriptedModel("words", PATHS)
    disabled = EvaluateConfig(generation=GenerateConfig(disabled=True))
    result, _ = evaluate_model("m", disabled, model, BENCHMARKS, TOOLS)
    assert (result.disabled, result.benchmarks["mixed"].calls, result.benchmarks["mixed"].accuracy) == (
        True,
        0,
        0,
    )
    off = EvaluateConfig(generation=GenerateConfig(tools_off=("Calculator",)))
    found = evaluate_model("m", off, model, BENCHMARKS, TOOLS)[0].benchmarks["mixed"]
    assert found.calls_by_tool == {"Calendar": 1}
    closed = [Benchmark("mixed", BENCHMARKS[0].questions, frozenset({"Calendar"}))]
    found = evaluate_model("m", off, model, closed, TOOLS)[0].benchmarks["mixed"]
    assert found.calls == 0


def test_labels_are_added_to_the_file_and_replaced(tmp_path: Path) -> None:
    model = random_model("Llama")
    folder = tmp_path / "model"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    questions = tmp_path / "sums.jsonl"
    questions.write_text(json.dumps({"id": "a", "prompt": SUM, "answers": ["31"], "scoring": "number"}))
    pages = tmp_path / "pages.jsonl"
    pages.write_text(
        "\n".join(json.dumps({"text": text}) for text in ["The river is long and so on.", "short"])
    )
    generation = GenerateConfig(
        model=ModelConfig(path=str(folder), dtype="float32", device="cpu"),
        tools=ToolsConfig(wikisearch=WikiSearchConfig(index=tmp_path / "index")),
        tools_off=("WikiSearch", "MT"),
        max_new_tokens=4,
    )
    config = EvaluateConfig(
        generation=generation,
        benchmarks=(questions,),
        perplexity=(str(pages),),
        output=tmp_path / "out" / "e.json",
    )
    disabled = config.model_copy(update={"generation": generation.model_copy(update={"disabled": True})})
    evaluate({"toolformer": config, "disabled": disabled})
    again = evaluate({"disabled": disabled}, TOOLS)
    assert again == Evaluation.read(config.output)
    assert list(again.models) == ["toolformer", "disabled"]
    written = json.loads(config.output.read_text())["models"]["toolformer"]
    assert written["benchmarks"]["sums"]["n"] == 1
    assert set(written["benchmarks"]["sums"]) >= {"accuracy", "n", "calls"}
    assert written["perplexity"] > again.models["disabled"].perplexity > 1
    assert written["held_out"] == {
        "texts": 1,
        "tokens": written["held_out"]["tokens"],
        "left_out": 0,
        "skipped": 1,
    }
    assert again.models["toolformer"].tools_off == ("MT", "QA", "WikiSearch")
    [line] = (tmp_path / "out" / "e.disabled.jsonl").read_text().splitlines()
    assert {"benchmark", "id", "prediction", "right", "calls"} <= set(json.loads(line))


def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    config = EvaluateConfig(output=tmp_path / "e.json", benchmarks=(tmp_path / "none.jsonl",))
    with pytest.raises(QuestionError, match=r"none\.jsonl"):
        evaluate({"m": config})
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate({"m": config.model_copy(update={"benchmarks": ()})})
    with pytest.raises(EvaluationError, match=r"label '\.\./m'"):
        evaluate({"../m": config})
    config.output.write_text("{}")
    with pytest.raises(EvaluationError, match=r"e\.json: not a result of evaluate"):
        evaluate({"m": config})


@pytest.mark.parametrize(
    "content",
    ["thesis", "[]\n", "null", "3", '{"id": "a"}', '{"benchmark": 1}', "\xff", "{"],
)
def test_a_file_in_the_place_of_the_predictions_is_kept(tmp_path: Path, content: str) -> None:
    """A user's questions.dev.jsonl, for example, with --output questions.json and --label dev."""
    theirs = tmp_path / "questions.dev.jsonl"
    theirs.write_text(content, encoding="latin-1")
    config = EvaluateConfig(output=tmp_path / "questions.json", perplexity=(str(tmp_path),))
    with pytest.raises(EvaluationError, match=r"questions\.dev\.jsonl: would be replaced"):
        evaluate({"dev": config})
    assert theirs.read_text(encoding="latin-1") == content


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "3", '{"models": 3}', "\0"])
def test_an_output_that_is_no_evaluation_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"e\.json: not a result of evaluate") as refused:
        evaluate({"dev": EvaluateConfig(output=tmp_path / "e.json", perplexity=(str(tmp_path),))})
    assert "pydantic" not in str(refused.value)
    assert (tmp_path / "e.json").read_text() == content


def test_results_that_are_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    result = ModelResult(model="m", k=1, disabled=False, tools_off=(), benchmarks={})
    labels = [f"label{n}" for n in range(20)]
    threads = [Thread(target=add_result, args=(tmp_path / "e.json", label, result, [])) for label in labels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Evaluation.read(tmp_path / "e.json").models) == sorted(labels)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "sums.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"id": "a", "prompt": SUM, "answers": ["31"], "scoring": "number"}))
    with pytest.raises(EvaluationError, match="two files are called sums"):
        evaluate({"m": EvaluateConfig(output=tmp_path / "e.json", benchmarks=tuple(paths))})
