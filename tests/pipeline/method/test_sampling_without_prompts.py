"""Step 2 without prompts: positions and draws behind the text alone, against the plain procedure."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fixtures.small_models import causal_lm, language_model, teach, tokenizer
from pipeline.base.config import MethodConfig
from pipeline.base.records import Document, Text
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.usage import Usage
from pipeline.method.annotator import prompt_of
from pipeline.method.drawn_calls import SampledText, SamplingRequest
from pipeline.method.sampling import sample_calls, select_positions
from tests.pipeline import oracle
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import Malformed
from tools_service.syntax.prompts import PromptTemplate

pytestmark = pytest.mark.unit

TOOL, SEED = "Calculator", 11
METHOD = ToolMethod(tau_s=0.0, k=3, m=5, max_call_tokens=12)
PROMPT = PromptTemplate(TOOL, "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")
TEXTS = [
    Text(100 + index, Document(f"a#{index}"), string)
    for index, string in enumerate(("The bakery sold 48 rolls.", "48 café “x” on Tuesday, 115 in both", "67"))
]
MODELS = [
    ("llama", "bytes"),
    ("llama", "split_marker"),
    ("llama", "words"),
    ("gpt_neox", "pieces"),
    ("gpt2", "bytes"),
    ("gptj_padded", "split_marker"),
]


@cache
def trained_model(architecture: str, kind: str) -> LanguageModel:
    """A model that likes to write calls behind a text, as one does that was fine-tuned on C*."""
    encode = tokenizer(kind)
    lm = causal_lm(architecture, len(encode))
    for text in (
        "sold 48 rolls [Calculator(27 + 4)]",
        "on Tuesday [Calculator(48 + 67) -> 115]",
        " [Calendar()]",
    ):
        teach(lm, encode(text, add_special_tokens=False).input_ids)
    return prepare_language_model(lm, encode)


def sample(
    model: LanguageModel, texts: list[Text], method: ToolMethod = METHOD, prompt: PromptTemplate | None = None
) -> list[SampledText]:
    requests = [SamplingRequest(text, TOOL) for text in texts]
    return sample_calls(model, requests, {TOOL: prompt}, MethodConfig(calculator=method, seed=SEED))


def found(sampled: SampledText) -> Counter[tuple[int, str]]:
    return Counter({(call.token_index, call.input): call.draws for call in sampled.candidates})


def p_api(model: LanguageModel, text: Text) -> np.ndarray:
    """p(<API>) at every token; 0 at the first one where there is no BOS that it follows."""
    first, n = 1 - len(model.call_tokens.bos), len(model.encode([text.text])[0].ids)
    return np.array([0.0] * first + [oracle.p_api(model, None, text.text, i) for i in range(first, n)])


@pytest.mark.parametrize("given_name", [False, True])
@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_draws_are_those_of_the_plain_procedure(architecture: str, kind: str, given_name: bool) -> None:
    model = trained_model(architecture, kind)
    method = METHOD.model_copy(update={"given_name": given_name})
    calls = 0
    for text, sampled in zip(TEXTS, sample(model, TEXTS, method), strict=True):
        encoded = model.encode([text.text])[0]
        p = p_api(model, text)
        positions = select_positions(p, encoded.starts >= 0, 0.0, METHOD.k).tolist()
        expected: Counter[tuple[int, str]] = Counter()
        for i in positions:
            context = [*oracle.before(model, None, text.text, i), *model.call_tokens.api]
            names = oracle.Names(model, context, f"{TOOL}(", 12) if given_name else None
            drawn = oracle.calls_at(
                model, None, text.text, i, METHOD.m, 12, SEED, text.text_id, names, tool=TOOL
            )
            expected.update((i, argument) for argument in drawn)
        assert found(sampled) == expected
        assert sampled.positions == len(positions)
        assert sum(expected.values()) + sum(sampled.discarded.values()) == sampled.draws
        for call in sampled.candidates:
            assert call.p_api == pytest.approx(p[call.token_index], rel=1e-3)
        calls += len(expected)
    assert calls, "agreeing on no call would say little"


def test_the_context_has_no_prompt() -> None:
    """Another prompt gives other probabilities; without one they are those of the text alone."""
    model = trained_model("llama", "split_marker")
    ids = [model.encode([text.text])[0].ids for text in TEXTS]

    def batched(prompt: PromptTemplate | None) -> list[np.ndarray]:
        batch = PrefilledBatch(model, model.prompt(prompt), ids, [Usage() for _ in ids])
        return batch.api_probabilities()

    for text, ours, prompted in zip(TEXTS, batched(None), batched(PROMPT), strict=True):
        assert ours == pytest.approx(p_api(model, text), rel=1e-3)
        assert ours != pytest.approx(prompted, rel=0.05)


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_draws_do_not_depend_on_the_texts_beside_them(architecture: str, kind: str) -> None:
    model = trained_model(architecture, kind)
    for text, beside in zip(TEXTS, sample(model, TEXTS), strict=True):
        [alone] = sample(model, [text])
        assert found(alone) == found(beside)
        assert [part.lower_bound for part in alone.work] == [part.lower_bound for part in beside.work]
        assert [part.run.tokens for part in alone.work] == [part.run.tokens for part in beside.work]


def test_the_text_is_run_once_and_not_twice() -> None:
    model = trained_model("llama", "split_marker")
    [sampled] = sample(model, TEXTS[:1])
    positions = next(part for part in sampled.work if part.phase == "positions")
    n = len(model.encode([TEXTS[0].text])[0].ids)
    api = len(model.call_tokens.api)
    predicted = n - 1 + len(model.call_tokens.bos)
    assert positions.run.tokens == positions.lower_bound.tokens == predicted + (api - 1) * predicted
    assert positions.lower_bound.logits == api * predicted


def test_without_bos_the_first_token_is_no_position_and_costs_nothing() -> None:
    model = trained_model("gpt2", "bytes")
    assert not model.call_tokens.bos
    one_token = Text(5, Document("a#5"), "")  # just the space before it
    alone, beside = sample(model, [one_token]), sample(model, [TEXTS[0], one_token])
    for sampled in (alone[0], beside[1]):
        assert (sampled.failed, sampled.positions, sampled.draws, sampled.discarded) == (None, 0, 0, {})
        assert sum(part.run.tokens + part.lower_bound.tokens for part in sampled.work) == 0
    wide = METHOD.model_copy(update={"k": 100})
    [sampled] = sample(model, TEXTS[:1], wide)
    usable = int((model.encode([TEXTS[0].text])[0].starts >= 0).sum())
    assert sampled.positions == usable - 1
    first = next(part for part in sampled.work if part.phase == "positions")
    assert first.run.tokens == first.lower_bound.tokens


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "split_marker"), ("gpt2", "bytes")])
def test_a_draw_ends_where_the_model_writes_an_arrow(architecture: str, kind: str) -> None:
    """As when it generates: what comes after is the tool's. With a prompt it is no call, as ever."""
    model = trained_model(architecture, kind)
    method = METHOD.model_copy(update={"m": 40, "given_name": True})
    requests = [SamplingRequest(text, TOOL) for text in TEXTS[:2]]

    def draws(prompt: PromptTemplate | None) -> list[tuple[str, str | Malformed]]:
        config = MethodConfig(calculator=method, seed=SEED)
        sampled = sample_calls(model, requests, {TOOL: prompt}, config, trace=True)
        return [draw for one in sampled if one.trace for draw in one.trace.draws if "->" in draw[0]]

    with_arrow = draws(None)
    calls = [(written, argument) for written, argument in with_arrow if isinstance(argument, str)]
    assert len(calls) >= 3
    for written, argument in with_arrow:
        assert written.partition("->")[2] in ("", "]"), "nothing is drawn behind the arrow's token"
        assert argument != Malformed("arrow")
    assert all(written.startswith(f"{TOOL}({argument}") or argument in written for written, argument in calls)
    assert {argument for _, argument in draws(PROMPT)} <= {Malformed("arrow"), Malformed("bracket")}


def test_draws_of_another_tool_are_dropped() -> None:
    """Nothing but the tool's section says whose calls are asked for."""
    model = trained_model("llama", "split_marker")
    method = METHOD.model_copy(update={"m": 40})
    requests = [SamplingRequest(text, tool) for tool in (TOOL, "Calendar") for text in TEXTS]
    sampled = sample_calls(
        model,
        requests,
        {TOOL: None, "Calendar": None},
        MethodConfig(calculator=method, calendar=method.model_copy(update={"takes_input": False}), seed=SEED),
    )
    by_tool = {one.tool: one.candidates for one in sampled if one.candidates}
    assert all({call.tool for call in calls} == {tool} for tool, calls in by_tool.items())
    assert sum(one.discarded.get("wrong_tool", 0) for one in sampled)


def test_a_text_may_fill_the_context_but_for_a_call() -> None:
    model = prepare_language_model(causal_lm("gpt2", 420, positions=96), tokenizer("bytes"))
    room = model.max_text_tokens(None, METHOD.max_call_tokens)
    assert room == 96 - METHOD.max_call_tokens - len(model.call_tokens.api)
    texts = [Text(1, Document("a#1"), "x" * (room - 1)), Text(2, Document("a#2"), "x" * room)]
    sizes = [len(encoded.ids) for encoded in model.encode([text.text for text in texts])]
    sampled = sample(model, texts)
    assert [one.failed is None for one in sampled] == [size <= room for size in sizes] == [True, False]
    assert "beside a call of Calculator" in str(sampled[1].failed)


def test_the_method_says_whether_there_are_prompts() -> None:
    assert prompt_of(TOOL, MethodConfig(use_prompts=False)) is None
    prompt = prompt_of(TOOL, MethodConfig())
    assert prompt is not None
    assert prompt.tool == TOOL


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_probabilities_of_texts_of_any_lengths(lengths: list[int]) -> None:
    """Two or more tokens without BOS: a single one has no context."""
    for architecture, kind in (("llama", "split_marker"), ("gpt2", "bytes")):
        model = language_model(architecture, kind)
        bos = len(model.call_tokens.bos)
        ids = [np.arange(3, 3 + length + (not bos)) for length in lengths]
        batch = PrefilledBatch(model, model.prompt(None), ids, [Usage() for _ in ids])
        for own, p in zip(ids, batch.api_probabilities(), strict=True):
            context = [*model.call_tokens.bos, *own[:-1].tolist()]
            expected = 1.0
            for token in model.call_tokens.api:
                expected *= float(oracle.probabilities(model, context)[token])
                context.append(token)
            assert len(p) == len(own)
            assert p[-1] == pytest.approx(expected, rel=1e-3)
