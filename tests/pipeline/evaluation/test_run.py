"""Evaluation as a whole: a real small model, real tools, question files and held-out pages."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.questions import Benchmark, Question, QuestionError
from pipeline.evaluation.results import Evaluation, EvaluationError
from pipeline.evaluation.run import evaluate, evaluate_model
from pipeline.evaluation.store import ResultStore
from pipeline.inference.generator import Generator
from tests.pipeline.inference.test_decode_batch import random_model
from tests.pipeline.scripted import ScriptedModel
from tools_service.base.locks import OutputInUseError
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
    assert (written["perplexity"], written["held_out"]) == (None, None)  # calls are on
    found = again.models["disabled"]
    base = evaluate({"base": config.model_copy(update={"plain_perplexity": True})}).models["base"]
    assert found.perplexity is not None
    assert base.perplexity is not None
    assert base.perplexity > found.perplexity  # <API> keeps its probability
    like_disabled = evaluate({"base": config.model_copy(update={"disabled_perplexity": True})}).models["base"]
    assert like_disabled.perplexity == found.perplexity  # not the stored one of before
    assert like_disabled.benchmarks == base.benchmarks
    assert found.perplexity > 1
    assert found.held_out is not None
    assert found.held_out.model_dump() == {
        "texts": 1,
        "tokens": found.held_out.tokens,
        "left_out": 0,
        "skipped": 1,
    }
    assert again.models["toolformer"].tools_off == ("MT", "QA", "WikiSearch")
    [row] = pq.read_table(tmp_path / "out" / "e.disabled.parquet").to_pylist()
    assert {"benchmark", "id", "prediction", "right", "calls"} <= set(row)


def test_published_benchmarks_beside_a_question_file(
    small: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = tmp_path / "SVAMP.json"
    sums.write_text(json.dumps([{"ID": "s", "Body": "Two.", "Question": "How many?", "Answer": 2.0}] * 2))
    facts = tmp_path / "Squad.jsonl"
    rows = [{"masked_sentences": [f"It is [MASK]{end}"], "obj_label": "so", "id": "f"} for end in ("", " x")]
    facts.write_text("\n".join(map(json.dumps, rows)))
    trivia = tmp_path / "nq.jsonl"
    trivia.write_text("\n".join(json.dumps({"question": "who", "answer": a}) for a in (["w " * 21], ["A"])))
    wiki = tmp_path / "wiki.raw"
    wiki.write_text(" = A river = \n The river is long and so on .\n")
    entries = (small.benchmarks[0], *(Path(f"{name}={path}") for name, path in [
        ("svamp", sums), ("lama_squad", facts), ("nq", trivia), ("wikitext", wiki),
    ]))  # fmt: skip
    config = small.model_copy(
        update={"benchmarks": entries, "output": tmp_path / "e.json", "window": 8, "stride": 4}
    )
    off = {"generation": config.generation.model_copy(update={"disabled": True})}
    disabled = config.model_copy(update=off)
    models = evaluate({"toolformer": config, "disabled": disabled}).models
    found = models["toolformer"]
    assert list(found.benchmarks) == ["first", "svamp", "lama_squad", "nq"]
    assert [(r.n, r.without_answer) for r in found.benchmarks.values()] == [(2, 0), (2, 0), (1, 0), (2, 1)]
    assert found.benchmarks["lama_squad"].left_out == {"mask not last": 1}
    for result in found.benchmarks.values():
        assert result.interval == wilson(round(result.accuracy * result.n), result.n)
        assert result.call_rate == result.calls / result.n
    assert found.running_texts["wikitext"].word_perplexity is None  # calls are on
    assert found.running_texts["wikitext"].words == 12
    measured = models["disabled"].running_texts["wikitext"]
    assert measured.word_perplexity is not None
    assert measured.token_perplexity is not None
    assert measured.word_perplexity > measured.token_perplexity > 1
    assert (measured.window, measured.stride, measured.articles) == (8, 4, 1)
    counted = Counted(monkeypatch)
    monkeypatch.setattr("pipeline.evaluation.tasks.running_text_perplexity", None)
    assert evaluate({"disabled": disabled}).models["disabled"] == models["disabled"]
    assert counted.prompts == 0
    twice = (Path(f"svamp={sums}"), Path(f"svamp={tmp_path / 'other.json'}"))
    (tmp_path / "other.json").write_text(sums.read_text())
    again = evaluate({"m": disabled.model_copy(update={"benchmarks": twice})}).models["m"]
    assert list(again.benchmarks) == ["svamp:SVAMP.json", "svamp:other.json"]


def test_published_answers_are_scored_beyond_the_first_line() -> None:
    paths = [f"{SUM}| so|:|\n| 31|.", f"{DAY}| some day."]
    question = Question(id="a", prompt=SUM, answers=("31",), scoring="number")
    closed = GenerateConfig(disabled=True)
    right = [
        evaluate_model(
            "m", EvaluateConfig(generation=closed), ScriptedModel("words", paths), [benchmark], TOOLS
        )[0].benchmarks["b"].accuracy
        for benchmark in (Benchmark("b", (question,)), Benchmark("b", (question,), first_line=False))
    ]  # fmt: skip
    assert right == [0, 1]


def test_accuracy_with_and_without_a_call() -> None:
    model = ScriptedModel("words", PATHS)
    found = evaluate_model("m", EvaluateConfig(), model, BENCHMARKS, TOOLS)[0].benchmarks["mixed"]
    assert (found.call_rate, found.accuracy_without_call) == (1, None)
    assert found.accuracy_with_call == found.accuracy == pytest.approx(2 / 3)
    off = EvaluateConfig(generation=GenerateConfig(tools_off=("Calculator",)))
    found = evaluate_model("m", off, model, BENCHMARKS, TOOLS)[0].benchmarks["mixed"]
    assert (found.call_rate, found.accuracy_with_call, found.accuracy_without_call) == (
        pytest.approx(1 / 3),
        1,
        0,
    )
    assert found.interval == wilson(1, 3)


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


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "3", '{"models": 3}', "\0"])
def test_an_output_that_is_no_evaluation_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"e\.json: not a result of evaluate") as refused:
        evaluate({"dev": EvaluateConfig(output=tmp_path / "e.json", perplexity=(str(tmp_path),))})
    assert "pydantic" not in str(refused.value)
    assert (tmp_path / "e.json").read_text() == content


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "sums.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"id": "a", "prompt": SUM, "answers": ["31"], "scoring": "number"}))
    with pytest.raises(EvaluationError, match="two are called sums"):
        evaluate({"m": EvaluateConfig(output=tmp_path / "e.json", benchmarks=tuple(paths))})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Two benchmarks and held-out texts for a random model."""
    folder = tmp_path_factory.mktemp("small")
    model = random_model("Llama")
    model.model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    for name in ("first", "second"):
        rows = [{"id": i, "prompt": SUM, "answers": ["31"], "scoring": "number"} for i in ("a", "b")]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pages.jsonl").write_text(json.dumps({"text": "The river is long and so on."}))
    generation = GenerateConfig(
        model=ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"),
        tools=ToolsConfig(wikisearch=WikiSearchConfig(index=folder / "index")),
        tools_off=("WikiSearch", "MT", "QA"),
        max_new_tokens=3,
    )
    files = (folder / "first.jsonl", folder / "second.jsonl")
    return EvaluateConfig(generation=generation, benchmarks=files, perplexity=(str(folder / "pages.jsonl"),))


class Counted:
    """Counts the prompts that a generator gets, and fails before prompt `limit`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 10**9) -> None:
        self.prompts, self.limit, self._original = 0, limit, Generator.generate
        monkeypatch.setattr(Generator, "generate", lambda *args: self._generate(*args))

    def _generate(self, *args: Any) -> Any:
        self.prompts += len(args[1])
        if self.prompts > self.limit:
            raise KeyboardInterrupt
        return self._original(*args)


def test_a_finished_benchmark_survives_a_crash_in_the_next(
    small: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small.model_copy(update={"output": tmp_path / "e.json"})
    Counted(monkeypatch, limit=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"m": config})
    assert list(Evaluation.read(config.output).models["m"].benchmarks) == ["first"]
    assert pq.read_table(tmp_path / "e.m.parquet").num_rows == 2
    monkeypatch.undo()
    counted = Counted(monkeypatch)
    resumed = evaluate({"m": config}).models["m"]
    assert counted.prompts == 2  # of the second benchmark only
    assert list(resumed.benchmarks) == ["first", "second"]
    whole = evaluate({"m": small.model_copy(update={"output": tmp_path / "whole.json"})}).models["m"]
    assert resumed == whole
    assert (tmp_path / "e.m.parquet").read_bytes() == (tmp_path / "whole.m.parquet").read_bytes()
    counted.prompts = 0
    assert evaluate({"m": config}).models["m"] == whole
    assert counted.prompts == 0


def test_what_changed_is_asked_again(
    small: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small.benchmarks[0].parent
    files = tuple(tmp_path / path.name for path in small.benchmarks)
    for path in files:
        path.write_bytes((folder / path.name).read_bytes())
    config = small.model_copy(update={"output": tmp_path / "e.json", "benchmarks": files, "perplexity": ()})
    evaluate({"m": config})
    counted = Counted(monkeypatch)

    def asked(config: EvaluateConfig) -> int:
        counted.prompts = 0
        evaluate({"m": config})
        return counted.prompts

    def with_generation(**changes: object) -> EvaluateConfig:
        return config.model_copy(update={"generation": config.generation.model_copy(update=changes)})

    assert asked(config) == 0
    for changes in ({"k": 1}, {"max_new_tokens": 2}, {"date": "2023-01-30"}, {"disabled": True}):
        assert asked(with_generation(**changes)) == 4
    assert asked(config) == 4
    files[1].write_text(files[1].read_text().replace("31", "32"))
    assert asked(config) == 2
    (tmp_path / "e.m.parquet").unlink()  # results without their predictions are not used
    assert asked(config) == 4
    assert asked(config.model_copy(update={"benchmarks": files[:1]})) == 0
    assert list(Evaluation.read(config.output).models["m"].benchmarks) == ["first"]


def test_what_cannot_be_asked_or_met_is_wrong_and_counted() -> None:
    questions = (
        Question(id="a", prompt=SUM, answers=("31",), scoring="number"),
        Question(id="long", prompt="so " * 100, answers=("31",), scoring="number"),
        Question(id="odd", prompt=SUM, answers=("many", "31"), scoring="number"),
        Question(id="none", prompt=SUM, answers=("many", ""), scoring="number"),
    )
    model = ScriptedModel("words", PATHS, 90)
    result, predictions = evaluate_model("m", EvaluateConfig(), model, [Benchmark("b", questions)], TOOLS)
    found = result.benchmarks["b"]
    assert (found.n, found.accuracy) == (4, 0.5)
    assert found.not_asked == {"too_long": 1}
    assert (found.answers_left_out, found.without_answer) == (3, 1)
    assert [one.right for one in predictions] == [True, False, True, False]
    rows = [one.to_row() for one in predictions]
    assert [row["refused"] for row in rows] == [None, "too_long", None, None]
    assert rows[1]["message"].startswith("the prompt")
    assert rows[1]["stop"] == "refused"


def test_a_result_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = {"accuracy": 0.5, "n": 2, "calls": 1, "calls_by_tool": {}, "failed_calls": {}}
    model = {"model": "m", "k": 10, "disabled": False, "tools_off": [], "benchmarks": {"b": old}}
    model |= {"perplexity": None, "held_out": None}
    (tmp_path / "e.json").write_text(json.dumps({"models": {"m": model}}))
    assert Evaluation.read(tmp_path / "e.json").models["m"].benchmarks["b"].n == 2


def test_it_goes_on_where_it_was_killed(
    small: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each of its writes in turn, a run ends with the bytes of an undisturbed one."""
    monkeypatch.setattr("pipeline.evaluation.label_run._CHUNK", 2)
    questions = tmp_path / "many.jsonl"
    rows = [{"id": str(i), "prompt": SUM, "answers": ["31"], "scoring": "number"} for i in range(7)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    files = (questions, small.benchmarks[0])
    config = small.model_copy(update={"benchmarks": files, "batch_size": 1, "compare_with": "b"})
    disabled = config.generation.model_copy(update={"disabled": True})

    def run(output: Path) -> None:
        there = config.model_copy(update={"output": output})
        evaluate({"a": there.model_copy(update={"generation": disabled}), "b": there})

    run(tmp_path / "whole.json")
    output, starts, counted = tmp_path / "e.json", 0, Counted(monkeypatch)
    finished = False
    while not finished:
        starts += 1
        with monkeypatch.context() as patch:
            _stop_after_a_write(patch)
            try:
                run(output)
                finished = True
            except KeyboardInterrupt:
                assert starts < 40
    assert starts > 10
    assert counted.prompts == 18  # two labels with 7 and 2 questions: none was asked twice
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    for label in ("a", "b"):
        written = [tmp_path / f"{name}.{label}.parquet" for name in ("e", "whole")]
        assert written[0].read_bytes() == written[1].read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def _stop_after_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop as soon as a file has another content."""

    def stopping(write: Any) -> Any:
        def write_and_stop(path: Path, content: Any, *more: Any) -> None:
            before = path.read_bytes() if path.exists() else None
            write(path, content, *more)
            if path.read_bytes() != before:
                raise KeyboardInterrupt

        return write_and_stop

    for module, name in (("store", "write_table"), ("store", "atomic_write"), ("paired", "atomic_write")):
        place = f"pipeline.evaluation.{module}.{name}"
        monkeypatch.setattr(place, stopping(getattr(import_module(f"pipeline.evaluation.{module}"), name)))


def test_labels_have_the_order_of_the_command(small: EvaluateConfig, tmp_path: Path) -> None:
    config = small.model_copy(update={"output": tmp_path / "e.json", "perplexity": ()})
    evaluate({"c": config})
    assert list(evaluate({"b": config, "a": config}).models) == ["c", "b", "a"]


def test_a_paired_test_needs_a_known_label(small: EvaluateConfig, tmp_path: Path) -> None:
    config = small.model_copy(update={"output": tmp_path / "e.json", "compare_with": "plain"})
    with pytest.raises(EvaluationError, match=r"--compare-with: no model 'plain' in .*; there are m"):
        evaluate({"m": config})


def test_a_label_that_is_being_written_is_refused(small: EvaluateConfig, tmp_path: Path) -> None:
    config = small.model_copy(update={"output": tmp_path / "e.json"})
    with ResultStore(config.output, "m").locked(), pytest.raises(OutputInUseError, match=r"e\.m\.parquet"):
        evaluate({"m": config})
