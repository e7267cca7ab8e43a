"""Calls that are drawn given the tool's name, against the plain procedure and against rejection."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from bench.fixtures.small_models import TAUGHT, causal_lm, little_memory, teach, tokenizer
from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.records import POSITION_NOT_SCORABLE, Document, Text
from pipeline.engine import name_paths
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.tree_attention import TreeBatch
from pipeline.method.drawn_calls import SampledText, SamplingRequest
from pipeline.method.sampling import sample_calls, select_positions
from pipeline.syntax.tokenizer import tokenize_continuations
from tests.pipeline import oracle
from tools_service.syntax.prompts import PromptTemplate

pytestmark = pytest.mark.unit

PROMPT = PromptTemplate("Calculator", "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")
OTHER = PromptTemplate("QA", "Ask for what is missing, or do not.\n\nInput:", "\nOutput:")
GIVEN = ToolMethod(tau_s=0.0, k=2, m=6, max_call_tokens=14, given_name=True)
SEED = 11
TEXTS = [
    Text(100 + number, Document(f"a#{number}"), text)
    for number, text in enumerate(
        ["The bakery sold 48 rolls.", "48 café “x” on Tuesday, 115 in both days. More", "67", "On 4 days"]
    )
]


@cache
def hesitant_model(architecture: str, kind: str) -> LanguageModel:
    """A small model that begins some draws with the calculator's name, and spells it in several ways."""
    words = tokenizer(kind)
    model = causal_lm(architecture.removesuffix("_padded"), len(words) + 3)
    teach(model, tokenize_continuations(words, [" " + TAUGHT])[0].ids.tolist(), strength=1.2)
    spelled = [" [", "C", "a", "l", "c", "ul", "a", "tor", "(", "48"]
    ids = [int(token) for part in spelled for token in tokenize_continuations(words, [part])[0].ids]
    teach(model, ids, strength=0.9)
    engine = prepare_language_model(model, words)
    if architecture.endswith("_padded"):
        engine.can_unpad, engine.eager_attention = False, True
    return engine


MODELS = [
    ("llama", "bytes"),
    ("llama", "words"),
    ("gptj", "split_marker"),
    ("gpt2", "bytes"),
    ("llama", "pieces"),
]


def sample(
    model: LanguageModel, texts: list[Text], method: ToolMethod = GIVEN, seed: int = SEED
) -> list[SampledText]:
    requests = [SamplingRequest(text, "Calculator") for text in texts]
    return sample_calls(model, requests, {"Calculator": PROMPT}, MethodConfig(calculator=method, seed=seed))


def found(sampled: SampledText) -> Counter[tuple[int, str]]:
    return Counter({(call.token_index, call.input): call.draws for call in sampled.candidates})


def outcome(sampled: SampledText) -> object:
    return found(sampled), sampled.discarded, sampled.draws


def ran(sampled: SampledText) -> int:
    return sum(part.run.tokens for part in sampled.work)


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_draws_are_those_of_the_plain_procedure_given_the_name(architecture: str, kind: str) -> None:
    model = hesitant_model(architecture, kind)
    for text, sampled in zip(TEXTS[:2], sample(model, TEXTS[:2]), strict=True):
        encoded = model.encode([text.text])[0]
        p = np.array([oracle.p_api(model, PROMPT, text.text, i) for i in range(len(encoded.ids))])
        usable = (encoded.starts >= 0) & ((np.arange(len(p)) > 0) | bool(model.call_tokens.bos))
        expected: Counter[tuple[int, str]] = Counter()
        p_name = {}
        for i in select_positions(p, usable, 0.0, GIVEN.k).tolist():
            context = [*oracle.before(model, PROMPT, text.text, i), *model.call_tokens.api]
            names = oracle.Names(model, context, "Calculator(", GIVEN.max_call_tokens)
            p_name[i] = float(names.following(()).sum())
            drawn = oracle.calls_at(
                model, PROMPT, text.text, i, GIVEN.m, GIVEN.max_call_tokens, SEED, text.text_id, names
            )
            expected.update((i, argument) for argument in drawn)
        assert found(sampled) == expected
        for call in sampled.candidates:
            assert call.p_api == pytest.approx(p[call.token_index], rel=1e-3)
            assert call.p_name == pytest.approx(p_name[call.token_index], rel=2e-3)
        discarded = sum(sampled.discarded.values()) - sampled.discarded.get(POSITION_NOT_SCORABLE, 0)
        assert sum(expected.values()) + discarded == sampled.draws == GIVEN.k * GIVEN.m
        assert "wrong_tool" not in sampled.discarded


def test_the_test_models_hesitate_and_spell_the_name_in_several_ways() -> None:
    """Otherwise agreeing with the plain procedure would say little."""
    wide = GIVEN.model_copy(update={"m": 60})
    spellings, p_names, calls = [], [], 0
    for model in (hesitant_model(*names) for names in MODELS):
        sampled = sample(model, TEXTS, wide)
        calls += sum(len(one.candidates) for one in sampled)
        p_names += [call.p_name or 0.0 for one in sampled for call in one.candidates]
        context = [*oracle.before(model, PROMPT, TEXTS[1].text, 3), *model.call_tokens.api]
        names = oracle.Names(model, context, "Calculator(", 14)
        keys = np.arange(60, dtype=np.uint64)[:, None]
        spellings.append(len({tuple(names.draw(key)) for key in keys}))
    assert calls > 30
    assert 0.0 < min(p_names) < 0.7
    assert max(spellings) >= 3, spellings


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "bytes"), ("gptj_padded", "split_marker")])
def test_draws_are_those_that_rejection_keeps(architecture: str, kind: str) -> None:
    """The calls of another seed's draws after <API>, without reasons that draws of other names share."""
    model = hesitant_model(architecture, kind)
    many = GIVEN.model_copy(update={"k": 1, "m": 2_000})
    after_api = many.model_copy(update={"given_name": False, "m": 20_000})
    [given] = sample(model, TEXTS[:1], many)
    [drawn] = sample(model, TEXTS[:1], after_api, seed=SEED + 1)
    counts = [Counter({call.input: call.draws for call in one.candidates}) for one in (given, drawn)]
    for count, one in zip(counts, (given, drawn), strict=True):
        count.update({f"no call: {reason}": number for reason, number in one.discarded.items()})
        for elsewhere in ("wrong_tool", "special_token", "too_long", POSITION_NOT_SCORABLE):
            del count[f"no call: {elsewhere}"]
    assert drawn.discarded["wrong_tool"] > 3_000, "rejection wastes few draws"
    table = np.array([[count[outcome] for outcome in {*counts[0], *counts[1]}] for count in counts], float)
    rare = table.sum(axis=0) < 10
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    freedom = table.shape[1] - 1
    assert freedom >= 3
    assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "pieces"), ("gptj_padded", "split_marker"), ("gpt2", "bytes")]
)
def test_draws_do_not_depend_on_what_is_sampled_beside_them(
    architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hesitant_model(architecture, kind)
    wide = GIVEN.model_copy(update={"m": 20, "k": 3})
    prompts = {"Calculator": PROMPT, "QA": OTHER}
    after_api = wide.model_copy(update={"given_name": False, "m": 7})
    method = MethodConfig(calculator=wide, qa=after_api, seed=SEED)
    requests = [SamplingRequest(text, tool) for tool in prompts for text in TEXTS]
    alone = [sample_calls(model, [request], prompts, method)[0] for request in requests]
    joined = []
    admit = TreeBatch.admit
    monkeypatch.setattr(TreeBatch, "admit", lambda tree, other: (joined.append(1), admit(tree, other))[1])
    for max_batch_tokens in (320, 1_300, 16_384):
        joined.clear()
        model.max_batch_tokens = max_batch_tokens
        together = sample_calls(model, requests, prompts, method)
        assert joined, "nothing joined"
        for one, beside in zip(alone, together, strict=True):
            assert outcome(one) == outcome(beside)
            assert [part.lower_bound for part in one.work] == [part.lower_bound for part in beside.work]
            assert ran(one) == ran(beside)
            p_alone, p_beside = ([call.p_name for call in own.candidates] for own in (one, beside))
            assert p_alone == pytest.approx(p_beside, rel=1e-3)
    assert any(one.candidates for one in alone)


@pytest.mark.parametrize("forward", range(2, 14))
def test_a_forward_that_finds_no_memory_loses_no_draw(forward: int) -> None:
    model = hesitant_model("llama", "bytes")
    model.prompt(PROMPT)
    expected = sample(model, TEXTS)
    count = iter(range(1, 1000))

    def refuse(*_: object) -> None:
        if next(count) == forward:
            raise torch.OutOfMemoryError("once")

    hook = model.model.base_model.register_forward_pre_hook(refuse)
    got = sample(model, TEXTS)
    hook.remove()
    assert (model.max_batch_tokens, next(count) > forward) == (8_192, True)
    model.max_batch_tokens = 16_384
    assert list(map(outcome, got)) == list(map(outcome, expected))


def test_the_work_of_texts_is_all_that_ran() -> None:
    model = hesitant_model("gptj_padded", "split_marker")
    model.usage.clear()
    with little_memory(model, 130) as refused:
        sampled = sample(model, TEXTS)
    assert refused
    assert sum(map(ran, sampled)) == sum(cost.tokens for cost in model.usage.values())


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "bytes"), ("gpt2", "split_marker")])
def test_the_lower_bound_counts_every_beginning_of_the_name(architecture: str, kind: str) -> None:
    """An engine without padding runs just the lower bound, and the beginnings are in it."""
    model = hesitant_model(architecture, kind)
    for text in TEXTS[:2]:
        [sampled] = sample(model, [text])
        lower, run = sampled.work[1].lower_bound, sampled.work[1].run
        tokens = len(model.call_tokens.api) * sampled.positions
        assert lower.tokens <= run.tokens <= lower.tokens + tokens
        [short] = sample(model, [text], GIVEN.model_copy(update={"max_call_tokens": 2}))
        assert short.work[1].lower_bound.tokens < lower.tokens


def test_a_name_that_the_model_hardly_writes_discards_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_paths, "MAX_PREFIXES", 1)
    for sampled in sample(hesitant_model("llama", "bytes"), TEXTS[:2]):
        assert sampled.discarded.get("name_too_unlikely") == sampled.draws == GIVEN.k * GIVEN.m
        assert not sampled.candidates


def test_off_by_default_and_then_without_a_probability_of_the_name() -> None:
    assert not any(MethodConfig().of(tool).given_name for tool in MethodConfig().tools)
    after_api = GIVEN.model_copy(update={"given_name": False})
    sampled = sample(hesitant_model("llama", "pieces"), TEXTS, after_api)
    calls = [call for one in sampled for call in one.candidates]
    assert calls
    assert {call.p_name for call in calls} == {None}


def test_a_model_that_gives_no_number_stops_with_the_text() -> None:
    broken = causal_lm("llama", 420)
    model = prepare_language_model(broken, tokenizer("bytes"))
    model.prompt(PROMPT)
    token = int(tokenize_continuations(model.tokenizer, ["C"])[0].ids[0])
    with torch.no_grad():
        broken.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(NonFiniteError, match=r"text 100, Calculator, position \d+: the prob"):
        sample(model, TEXTS[:1])
