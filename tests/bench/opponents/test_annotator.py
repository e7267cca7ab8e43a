"""Annotation as a client of an engine: the tests' own model answers the requests, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.comparison import compare_calls
from bench.fixtures import small_run
from bench.fixtures.small_run import annotator_model, texts
from bench.opponents import annotator as client
from bench.opponents.annotator import ClientAnnotator
from pipeline.base.config import MethodConfig
from pipeline.base.records import Call, Candidate, Text
from pipeline.method.annotator import Annotator
from pipeline.method.execution import ExecutedCall
from tests.bench.opponents.fake_worker import FakeWorker
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    settings = small_run.method(small_run.write_prompts(tmp_path / "prompts"))
    return settings.model_copy(update={"tools": ("Calculator",)})


@pytest.fixture
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator",))


@pytest.fixture
def engine(method: MethodConfig, tools: LocalTools) -> list[list[Call]]:
    return [list(row.calls) for row in Annotator(annotator_model(), tools, method).annotate(texts(4))]


def positions(annotator: ClientAnnotator, of: list[Text]) -> dict[tuple[int, int], float]:
    return annotator.select_positions(of, annotator.model.encode([text.text for text in of]))


def test_the_engines_calls_get_the_engines_losses(
    method: MethodConfig, tools: LocalTools, engine: list[list[Call]]
) -> None:
    worker = FakeWorker(annotator_model())
    annotator = ClientAnnotator(worker, annotator_model(), tools, method)
    executed = [
        client.calls_to_score(annotator_model(), text, calls)
        for text, calls in zip(texts(4), engine, strict=True)
    ]
    same = compare_calls(engine, annotator.score(texts(4), executed), method.calculator.tau_f)
    assert same["scored"] == [same["scored_by_both"]] * 2
    assert same["scored_by_both"] >= 3
    assert same["same_kept"]
    assert same["max_loss_difference"] < 1e-4
    distinct = {(n, c.input, c.result) for n, calls in enumerate(engine) for c in calls}
    assert worker.asked["score"] <= 2 * len(distinct) + len(engine)  # with and without result; bare texts


@pytest.mark.parametrize("top", [1, 1_000])
def test_positions_are_the_engines_for_any_number_of_listed_tokens(
    monkeypatch: pytest.MonkeyPatch,
    method: MethodConfig,
    tools: LocalTools,
    engine: list[list[Call]],
    top: int,
) -> None:
    monkeypatch.setattr(client, "TOP_LOGPROBS", top)
    worker, encoded = (
        FakeWorker(annotator_model()),
        annotator_model().encode([text.text for text in texts(4)]),
    )
    selected = positions(ClientAnnotator(worker, annotator_model(), tools, method), texts(4))
    assert len(selected) == 4 * method.calculator.k
    by_character = {(n, int(encoded[n].starts[i])): p for (n, i), p in selected.items()}
    calls = {(n, call.position): call.p_api for n, of_text in enumerate(engine) for call in of_text}
    assert calls == pytest.approx({at: by_character[at] for at in calls}, abs=1e-5)
    assert (worker.asked["next_logprob"] > 0) == (top == 1)
    monkeypatch.setattr(client, "TOP_LOGPROBS", annotator_model().vocabulary_size)
    assert selected == pytest.approx(
        positions(ClientAnnotator(worker, annotator_model(), tools, method), texts(4)), abs=1e-5
    )


def test_equal_texts_are_listed_once(method: MethodConfig, tools: LocalTools) -> None:
    worker = FakeWorker(annotator_model())
    twice = texts(1) * 2
    selected = positions(ClientAnnotator(worker, annotator_model(), tools, method), twice)
    assert worker.asked["token_logprobs"] == 1
    assert sorted({n for n, _ in selected}) == [0, 1]


def test_the_whole_method(method: MethodConfig, tools: LocalTools) -> None:
    annotator = ClientAnnotator(FakeWorker(annotator_model()), annotator_model(), tools, method)
    annotator.warm_up(texts(1))
    assert not annotator.name_first  # the fake worker takes half a second for each request
    annotator.reset()
    calls = annotator.annotate(texts(4))
    assert annotator.candidates >= sum(map(len, calls)) > 0
    assert {call.result for of_text in calls for call in of_text} <= {str(n) for n in range(10_000)}
    assert annotator.usage.keys() >= {"positions", "decode", "plus", "empty"}
    assert annotator.wall_s["sample"] == 0.5
    assert annotator.forwards >= 9


def test_draws_are_parsed_as_calls(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    annotator = ClientAnnotator(FakeWorker(model), model, tools, method)

    def ids(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False).input_ids

    special = [*ids("Calculator(1"), model.tokenizer.all_special_ids[0]]
    drawn = [ids("Calculator(1 + 2)]"), ids("Calculator(1 + 2)]"), ids("Calendar()]"), special, ids("Calc[")]
    annotator.request = lambda method, **_: {
        "drawn": [drawn],
        "fed": [[3] * len(drawn)],
        "wall_s": 0,
        "cpu_s": 0,
        "forwards": 0,
    }
    annotator.name_first = False
    assert annotator.draw([[1, 2, 3]]) == [{"1 + 2": 2}]
    assert {draw[-1] for draw in drawn} <= {*annotator.stop}


def test_draws_that_do_not_name_the_tool_are_not_continued(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    annotator = ClientAnnotator(FakeWorker(model), model, tools, method)
    head, other, rest = (
        model.tokenizer(text, add_special_tokens=False).input_ids
        for text in ("Calculator(", "Zebras are not", "1 + 2)]")
    )
    other = other[: len(head)]
    asked: list[dict[str, Any]] = []

    def request(_: str, **fields: Any) -> dict[str, Any]:
        asked.append(fields)
        drawn = [[head[:], other[:], other[:], head[:]]] if len(asked) == 1 else [[rest]] * 2
        fed = [[1] * len(draws) for draws in drawn]
        return {"drawn": drawn, "fed": fed, "wall_s": 0, "cpu_s": 0, "forwards": 0}

    annotator.request = request
    assert annotator.name_first
    assert annotator.draw([[1, 2, 3]]) == [{"1 + 2": 2}]
    assert asked[0]["max_tokens"] == len(head)
    assert asked[1]["ids"] == [[1, 2, 3, *head]] * 2
    assert asked[1]["m"] == 1
    assert asked[1]["max_tokens"] == method.calculator.max_call_tokens - len(head)
    assert annotator.usage["decode"].tokens == 4 * len(head) + 2 * len(rest)


def test_both_ways_to_draw_give_the_same_distribution(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    [text] = texts(1)
    prompt = ClientAnnotator(FakeWorker(model), model, tools, method)
    x = model.encode([text.text])[0].ids.tolist()
    [(_, i), *_] = positions(prompt, [text])
    context = [*prompt._context(x), *x[:i], *model.call_tokens.api]
    shares = []
    for name_first in (True, False):
        annotator = ClientAnnotator(FakeWorker(model), model, tools, method, name_first=name_first)
        [calls] = annotator.draw([context])
        for _ in range(11):
            calls += annotator.draw([context])[0]
        shares.append(sum(calls.values()) / (12 * method.calculator.m))
    assert shares[0] > 0
    assert shares == pytest.approx([sum(shares) / 2] * 2, abs=0.25)


def test_a_call_without_a_result_is_not_scored(method: MethodConfig, tools: LocalTools) -> None:
    annotator = ClientAnnotator(FakeWorker(annotator_model()), annotator_model(), tools, method)
    failed = ExecutedCall(Candidate("Calculator", 5, 2, 0.5, "1 / 0", 1), None, "division")
    assert annotator.score(texts(1), [[failed]]) == [[]]
