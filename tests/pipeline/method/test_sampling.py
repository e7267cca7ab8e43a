"""Step 2 against the plain procedure: the same positions, the same draws for the same random numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from bench.fixtures.small_models import causal_lm, language_model, little_memory, tokenizer
from pipeline.base.config import MethodConfig
from pipeline.base.records import POSITION_NOT_SCORABLE, Call, Document, Text
from pipeline.engine.errors import ModelError, NonFiniteError
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel, row_blocks
from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.engine.sampler import invert_cdf
from pipeline.engine.tree_attention import TreeBatch
from pipeline.method.drawn_calls import SampledText, SamplingRequest
from pipeline.method.sampling import sample_calls, select_positions
from pipeline.syntax.grammar import CLOSED, DEAD, automaton, call_head
from tests.pipeline import oracle
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import Malformed, insert_calls, parse_call
from tools_service.syntax.prompts import PromptTemplate

pytestmark = pytest.mark.unit

PROMPT = PromptTemplate("Calculator", "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")
METHOD = ToolMethod(tau_s=0.0, k=2, m=4, max_call_tokens=10)
SEED = 11


def texts(*strings: str) -> list[Text]:
    return [Text(100 + index, Document(f"a#{index}"), string) for index, string in enumerate(strings)]


TEXTS = texts("The bakery sold 48 rolls.", "48 café “x” on Tuesday, 115 in both days. More", "67")


def sample(model: LanguageModel, given: list[Text], method: ToolMethod = METHOD) -> list[SampledText]:
    orders = [SamplingRequest(text, "Calculator") for text in given]
    return sample_calls(model, orders, {"Calculator": PROMPT}, MethodConfig(calculator=method, seed=SEED))


def ran(sampled: SampledText) -> int:
    return sum(part.run.tokens for part in sampled.work)


def found(sampled: SampledText) -> Counter[tuple[int, str]]:
    return Counter({(call.token_index, call.input): call.draws for call in sampled.candidates})


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", "bytes"),
        ("llama", "words"),
        ("llama", "split_marker"),
        ("gpt_neox", "pieces"),
        ("gpt2", "bytes"),
        ("gptj", "split_marker"),
        ("gptj_padded", "split_marker"),
    ],
)
def test_draws_are_those_of_the_plain_procedure(architecture: str, kind: str) -> None:
    model = language_model(architecture, kind)
    for text, sampled in zip(TEXTS[:2], sample(model, TEXTS[:2]), strict=True):
        pieces = model.encode([text.text])[0]
        p = np.array([oracle.p_api(model, PROMPT, text.text, i) for i in range(len(pieces.ids))])
        usable = (pieces.starts >= 0) & ((np.arange(len(p)) > 0) | bool(model.call_tokens.bos))
        expected: Counter[tuple[int, str]] = Counter()
        for i in select_positions(p, usable, METHOD.tau_s, METHOD.k):
            drawn = oracle.calls_at(model, PROMPT, text.text, int(i), METHOD.m, 10, SEED, text.text_id)
            expected.update((int(i), argument) for argument in drawn)
        assert found(sampled) == expected
        assert all(call.p_api == pytest.approx(p[call.token_index], abs=1e-5) for call in sampled.candidates)
        discarded = sum(sampled.discarded.values()) - sampled.discarded.get(POSITION_NOT_SCORABLE, 0)
        assert sum(expected.values()) + discarded == sampled.draws == METHOD.k * METHOD.m


def test_the_test_models_do_draw_calls() -> None:
    """Otherwise agreeing with the plain procedure would say little."""
    models = [language_model("gpt2", "bytes"), language_model("llama", "split_marker")]
    wide = ToolMethod(tau_s=0.0, k=5, m=8, max_call_tokens=10)
    drawn = [call for model in models for one in sample(model, TEXTS, wide) for call in one.candidates]
    assert len(drawn) >= 8
    assert len({call.input for call in drawn}) >= 3


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "pieces"), ("gptj", "bytes"), ("gptj_padded", "bytes"), ("gpt2", "split_marker")],
)
def test_draws_do_not_depend_on_padding_or_on_what_is_sampled_beside_them(
    architecture: str, kind: str
) -> None:
    """One mistake seen elsewhere: sampling from the logits of a padding slot."""
    model = language_model(architecture, kind)
    for text, sampled in zip(TEXTS, sample(model, TEXTS), strict=True):
        [alone] = sample(model, [text])
        assert found(alone) == found(sampled)
        assert alone.discarded == sampled.discarded
        assert [part.lower_bound for part in alone.work] == [part.lower_bound for part in sampled.work]
        assert ran(alone) == ran(sampled)
        p_alone, p_beside = ([call.p_api for call in one.candidates] for one in (alone, sampled))
        assert p_alone == pytest.approx(p_beside, rel=1e-3)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "bytes"), ("gptj", "split_marker"), ("gptj_padded", "split_marker")]
)
def test_giving_up_finished_rows_and_columns_changes_no_draw(
    architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are draws enough to notice a wrong column."""
    model, wide = language_model(architecture, kind), ToolMethod(tau_s=0.0, k=3, m=40, max_call_tokens=12)
    never, always = 0.0, 99.0
    found_with = []
    for worth in (never, always):
        monkeypatch.setattr("pipeline.engine.tree_attention._COMPACT_SHARE", worth)
        found_with.append([(found(one), one.discarded) for one in sample(model, TEXTS, wide)])
    assert found_with[0] == found_with[1]
    assert any(calls for calls, _ in found_with[0])


def test_batches_of_one_row_give_the_same_draws() -> None:
    together, apart = language_model("llama", "bytes"), language_model("llama", "bytes", max_batch_tokens=1)
    assert list(map(found, sample(together, TEXTS))) == list(map(found, sample(apart, TEXTS)))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "pieces"), ("gptj", "split_marker"), ("gptj_padded", "pieces"), ("gpt2", "bytes")],
)
def test_texts_of_several_tools_join_draws_under_way_and_change_nothing(
    architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(architecture, kind)
    other = PromptTemplate("QA", "Ask for what is missing, or do not.\n\nInput:", "\nOutput:")
    prompts: dict[str, PromptTemplate] = {"Calculator": PROMPT, "QA": other}
    wide = ToolMethod(tau_s=0.0, k=3, m=20, max_call_tokens=12)
    method = MethodConfig(calculator=wide, qa=wide.model_copy(update={"m": 7, "max_call_tokens": 9}))
    given = TEXTS + texts("On Monday 30 rolls", "It sold twice as many on Tuesday as on Monday.")
    orders = [SamplingRequest(text, tool) for tool in prompts for text in given]
    alone = [sample_calls(model, [order], prompts, method)[0] for order in orders]
    joined: list[int] = []
    join = TreeBatch.admit
    monkeypatch.setattr(
        TreeBatch, "admit", lambda tree, other: (joined.append(tree.cached_slots), join(tree, other))[1]
    )
    longest = max(sum(model.prompt(one).length + 160 for one in prompts.values()), 1)
    for max_batch_tokens in (longest, 4 * longest, 16_384):
        model.max_batch_tokens = max_batch_tokens
        joined.clear()
        together = sample_calls(model, orders, prompts, method)
        assert joined, "nothing joined"
        for one, beside in zip(alone, together, strict=True):
            assert (one.text, one.tool, one.draws) == (beside.text, beside.tool, beside.draws)
            assert found(one) == found(beside)
            assert one.discarded == beside.discarded
            assert [part.lower_bound for part in one.work] == [part.lower_bound for part in beside.work]
            assert ran(one) == ran(beside)
    assert any(one.candidates for one in alone)
    model.max_batch_tokens = 16_384


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "bytes"), ("gptj", "split_marker"), ("gptj_padded", "split_marker")]
)
def test_showing_the_cache_in_multiples_of_columns_changes_no_draw(architecture: str, kind: str) -> None:
    """As on a GPU; what is behind the filled columns is masked."""
    model, wide = language_model(architecture, kind), ToolMethod(tau_s=0.0, k=3, m=40, max_call_tokens=12)
    exact = [(found(one), one.discarded) for one in sample(model, TEXTS, wide)]
    model.slot_multiple = 16
    shown = [(found(one), one.discarded) for one in sample(model, TEXTS, wide)]
    model.slot_multiple = 1
    assert shown == exact


@pytest.mark.parametrize(("architecture", "tokens"), [("llama", 60), ("gptj_padded", 100)])
def test_what_finds_no_memory_is_drawn_again_in_smaller_batches(architecture: str, tokens: int) -> None:
    model = language_model(architecture, "pieces")
    given, wide = [*TEXTS, *texts("On Monday 30 rolls", "It sold 4")], METHOD.model_copy(update={"m": 30})
    expected = sample(model, given, wide)
    model.usage.clear()
    with little_memory(model, tokens) as refused:
        got = sample(model, given, wide)
        assert model.max_batch_tokens < 16_384
    assert refused
    assert [(found(one), one.discarded, one.draws) for one in got] == [
        (found(one), one.discarded, one.draws) for one in expected
    ]
    assert sum(map(ran, got)) == sum(cost.tokens for cost in model.usage.values())


@pytest.mark.parametrize("forward", range(2, 9))
def test_a_step_that_finds_no_memory_loses_no_draw(forward: int) -> None:
    model = language_model("llama", "pieces")
    model.prompt(PROMPT)
    wide = METHOD.model_copy(update={"m": 30})
    expected = sample(model, TEXTS, wide)
    count = iter(range(1, 1000))

    def refuse(*_: object) -> None:
        if next(count) == forward:
            raise torch.OutOfMemoryError("once")

    hook = model.model.base_model.register_forward_pre_hook(refuse)
    got = sample(model, TEXTS, wide)
    hook.remove()
    assert (model.max_batch_tokens, next(count) > forward) == (8_192, True)
    model.max_batch_tokens = 16_384
    assert [(found(one), one.discarded) for one in got] == [(found(one), one.discarded) for one in expected]


def test_a_context_that_finds_no_memory_by_itself_is_an_error() -> None:
    model = language_model("llama", "pieces")
    model.prompt(PROMPT)
    with little_memory(model, 10), pytest.raises(ModelError, match="out of memory with"):
        sample(model, TEXTS)


def test_draws_differ_by_seed_text_tool_position_and_number() -> None:
    keys = [
        stream_keys(0, 1, 0, 2, 3),
        stream_keys(1, 1, 0, 2, 3),
        stream_keys(0, -1, 0, 2, 3),
        stream_keys(0, 1, 4, 2, 3),
        stream_keys(0, 1, 0, 3, 3),
    ]
    assert len(set(np.concatenate(keys).tolist())) == 15
    assert stream_keys(0, 1, 0, 2, 2).tolist() == keys[0][:2].tolist()


def test_keys_of_many_texts_and_positions_are_those_of_each() -> None:
    texts, positions = np.array([7, -1, 2**63 - 1]), np.array([0, 5, 9])
    together = stream_keys(3, texts[:, None], 2, positions[:, None], 4)
    pairs = zip(texts.tolist(), positions.tolist(), strict=True)
    assert together.tolist() == [stream_keys(3, *(text, 2, position), 4).tolist() for text, position in pairs]


def test_streams_are_splitmix64() -> None:
    """The generator's published first values for the seed 1234567."""
    bits = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    key = np.array([1234567], dtype=np.uint64)
    assert [uniforms(key, step)[0] for step in range(3)] == [(value >> 11) * 2.0**-53 for value in bits]


def test_uniforms_are_uniform_across_draws_and_steps() -> None:
    keys = np.concatenate([stream_keys(5, text, 0, i, 10) for text in range(40) for i in range(10)])
    u = np.stack([uniforms(keys, step) for step in range(4)])
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
    assert abs(np.corrcoef(u)[np.triu_indices(4, 1)]).max() < 0.07


def test_inverting_the_cdf_takes_tokens_in_proportion() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).log()
    u = torch.tensor([[0.0, 0.0999, 0.1001, 0.2999, 0.3001, 1 - 2**-53]], dtype=torch.float64)
    assert invert_cdf(logits, u).tolist() == [[0, 0, 1, 1, 3, 3]]
    assert invert_cdf(logits * torch.nan, u).tolist() == [[-1] * 6]


def test_a_large_vocabulary_gives_the_tokens_of_the_plain_definition() -> None:
    """Rows are inverted in blocks. At the edge between two tokens the later one is drawn, and no token
    without probability is."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(7, 400_000, generator=generator)
    logits[:, :3] = logits[:, 200_000:300_000] = logits[:, -2:] = -torch.inf
    logits[2] = torch.nan
    assert len(row_blocks(logits)) > 2
    cdf = logits.double().softmax(1).cumsum(1)
    edges = cdf[:, [3, 199_999, 250_000, 399_990]]
    below = edges.nextafter(torch.zeros(()).double())
    u = torch.cat([torch.rand(7, 5, generator=generator).double(), edges, below, torch.zeros(7, 1)], dim=1)
    tokens = invert_cdf(logits, u)
    for row in (0, 1, 3, 4, 5, 6):
        total = cdf[row, -1]
        for number, drawn in zip(u[row].tolist(), tokens[row].tolist(), strict=True):
            first = int((cdf[row] > number * total).nonzero()[0])
            assert drawn == first
            assert logits[row, drawn] > -torch.inf
    assert tokens[2].tolist() == [-1] * u.shape[1]


def test_positions_are_the_top_k_above_tau_s() -> None:
    p = np.array([0.5, 0.05, 0.3, 0.3, 0.9, 0.2])
    usable = np.array([True, True, True, True, False, True])
    assert select_positions(p, usable, 0.05, 9).tolist() == [0, 2, 3, 5]
    assert select_positions(p, usable, 0.05, 2).tolist() == [0, 2]
    assert select_positions(p, usable, 0.5, 2).tolist() == []


def test_position_zero_is_a_position() -> None:
    """One mistake seen elsewhere: position 0 standing for none."""
    model = language_model("gpt2", "words")
    sampled = sample(model, TEXTS[:1])[0]
    assert min(call.token_index for call in sampled.candidates) == 0
    assert min(call.position for call in sampled.candidates) == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 13, 100])
def test_without_a_bos_the_first_position_is_counted_where_it_would_be_in_i(k: int) -> None:
    model = language_model("llama", "bytes")
    settings = ToolMethod(tau_s=0.0, k=k, m=1, max_call_tokens=2)
    for text, sampled in zip(TEXTS, sample(model, TEXTS, settings), strict=True):
        starts = model.encode([text.text])[0].starts
        p = np.array([oracle.p_api(model, PROMPT, text.text, i) for i in range(len(starts))])
        with_first = select_positions(p, starts >= 0, 0.0, k)
        counted = sampled.discarded.get(POSITION_NOT_SCORABLE, 0)
        assert counted == int(0 in with_first)
        assert all(call.token_index > 0 for call in sampled.candidates)
        # The discarded draws and the calls are all draws: the position is not among them.
        of_calls = sum(call.draws for call in sampled.candidates)
        assert sum(sampled.discarded.values()) - counted + of_calls == sampled.draws


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_positions_index_the_original_text(kind: str) -> None:
    """One mistake seen elsewhere: offsets of the model's own copy, or off by a BOS, used on the original."""
    model = language_model("llama", kind)
    for text, sampled in zip(TEXTS, sample(model, TEXTS), strict=True):
        ids = model.encode([text.text])[0].ids
        for call in sampled.candidates:
            behind = model.call_tokens.token_strings[ids[call.token_index]]
            assert (" " + text.text)[call.position + (call.position > 0) :].startswith(behind)


def test_the_text_is_in_the_prompt() -> None:
    """One mistake seen elsewhere: a prompt without the document, where only the text before i would count."""
    model = language_model("llama", "pieces")
    one, other = texts("The bakery sold 48 rolls.", "The bakery sold 48 on Tuesday.")
    p_one, p_other = (oracle.p_api(model, PROMPT, text.text, 1) for text in (one, other))
    assert abs(np.log(p_one / p_other)) > 0.01
    low = ToolMethod(tau_s=0.0, k=20, m=1, max_call_tokens=2)
    sampled = sample(model, [one, other], low)
    assert sampled[0].positions == len(model.encode([one.text])[0].ids)


def test_draws_end_at_a_bracket_inside_a_token() -> None:
    """One mistake seen elsewhere: waiting for the token `]` while the model writes `)]`."""
    model = language_model("llama", "bytes")
    bracket = model.tokenizer.convert_tokens_to_ids("]")
    closing = model.tokenizer.convert_tokens_to_ids(")]")
    table = model.automaton("Calculator(")
    assert table[-1, bracket] == table[-1, closing] == CLOSED
    assert sample(model, TEXTS)[0].candidates


def test_a_draw_that_never_closes_is_discarded_after_max_call_tokens() -> None:
    """One mistake seen elsewhere: an unbounded loop when </API> never comes."""
    model = language_model("llama", "bytes")
    sampled = sample(model, TEXTS, METHOD.model_copy(update={"max_call_tokens": 2}))
    assert not any(one.candidates for one in sampled)
    assert sum(one.discarded.get("too_long", 0) for one in sampled) > 0


def test_equal_prefixes_of_draws_cost_one_token() -> None:
    model = language_model("llama", "bytes")
    few, many = (sample(model, TEXTS[:1], METHOD.model_copy(update={"m": m}))[0] for m in (4, 64))
    context = 2 * len(model.encode([TEXTS[0].text])[0].ids) + len(model.prompt(PROMPT).suffix) - 1
    assert many.draws == 16 * few.draws
    assert ran(many) - context < 8 * (ran(few) - context)


def test_a_text_that_does_not_fit_the_context_fails_alone() -> None:
    model = prepare_language_model(causal_lm("gpt2", 420, positions=96), tokenizer("bytes"))
    given = texts("The bakery sold 48 rolls.", "rolls " * 40, "", "67 on Tuesday")
    sampled = sample(model, given)
    assert [one.failed is None for one in sampled] == [True, False, True, True]
    assert "context" in str(sampled[1].failed)
    assert sampled[1].text.text_id == 101


def test_a_prompt_longer_than_the_context_fails_every_text_and_runs_nothing() -> None:
    model = prepare_language_model(causal_lm("gpt2", 420, positions=32), tokenizer("bytes"))
    assert all("room for 0" in str(one.failed) for one in sample(model, TEXTS))
    assert not model.usage


def test_a_text_of_just_the_room_is_sampled() -> None:
    model = prepare_language_model(causal_lm("gpt2", 420, positions=96), tokenizer("bytes"))
    room = model.max_text_tokens(PROMPT, METHOD.max_call_tokens)
    sampled = sample(model, texts("x" * (room - 1) + "y", "x" * room + "y"))
    sizes = [len(pieces.ids) for pieces in model.encode(["x" * (room - 1) + "y", "x" * room + "y"])]
    assert [one.failed is None for one in sampled] == [size <= room for size in sizes]


def test_no_position_above_tau_s_costs_no_draw() -> None:
    [sampled] = sample(language_model("llama", "bytes"), TEXTS[:1], METHOD.model_copy(update={"tau_s": 1.0}))
    assert (sampled.positions, sampled.draws, sampled.candidates, sampled.failed) == (0, 0, (), None)


def test_a_model_that_gives_no_number_stops_with_the_text() -> None:
    broken = causal_lm("llama", 420)
    model = prepare_language_model(broken, tokenizer("bytes"))
    model.prompt(PROMPT)
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(NonFiniteError, match=r"text 100, Calculator, position 0") as raised:
        sample(model, TEXTS[:1])
    assert (raised.value.text_id, raised.value.tool) == (100, "Calculator")


def test_candidates_merge_back_into_their_text() -> None:
    [sampled] = sample(language_model("llama", "pieces"), TEXTS[:1])
    first = sampled.candidates[0]
    call = Call("Calculator", first.position, first.p_api, first.input, "7", 0.0, 0.0, None, 0.0)
    assert f"[Calculator({first.input}) -> 7]" in insert_calls(TEXTS[0].text, [call])


NAMES = ["Calc", "ulator", "Calculator(", "Calculator(1)]\n", "Cal", "endar", ""]
PIECES = [*NAMES, "(", "(1", ")]", ".]\n", "\n", " [", "()]", "</s>"]


@cache
def table_of(tool: str) -> np.ndarray:
    return automaton(call_head(tool, tool != "Calendar"), PIECES, [PIECES.index("</s>")], len(PIECES) + 2)


def end_of(tool: str, *pieces: str) -> int:
    table, state = table_of(tool), 0
    for piece in pieces:
        state = int(table[state, PIECES.index(piece)])
        if state < 0:
            break
    return state


def test_the_automaton_closes_and_gives_up_where_the_text_does() -> None:
    assert end_of("Calculator", "Calc", "", "ulator", "(1", ")]") == CLOSED
    assert end_of("Calculator", "Calculator(1)]\n") == CLOSED
    assert end_of("Calculator", "Calculator(", "(", ".]\n") == CLOSED
    assert end_of("Calculator", "Calculator(", "(") == len("Calculator(")
    assert end_of("Calculator", "Calc", "(") == DEAD
    assert end_of("Calculator", "Calculator(", "\n") == DEAD
    assert end_of("Calculator", "Calculator(", " [") == DEAD
    assert end_of("Calculator", "Calculator(", "</s>") == DEAD
    assert end_of("Calendar", "Cal", "endar", "()]") == CLOSED
    assert end_of("Calendar", "Cal", "endar", "(1") == DEAD
    assert (table_of("QA")[:, len(PIECES) :] == DEAD).all()


def test_the_automaton_never_ends_a_draw_that_would_be_read_as_a_call() -> None:
    tools: tuple[str, str] = ("Calculator", "Calendar")
    for tool in tools:
        for pieces in product(PIECES[:-1], repeat=4):
            text = "".join(pieces)
            read = parse_call(text, tool, tool != "Calendar")
            state = end_of(tool, *pieces)
            assert isinstance(read, Malformed) or state == CLOSED, text
            assert state == CLOSED or isinstance(read, Malformed), text


def test_a_trace_has_every_draw_and_changes_nothing() -> None:
    model = language_model("llama", "bytes")
    requests = [SamplingRequest(text, "Calculator") for text in TEXTS]
    method = MethodConfig(calculator=METHOD, seed=SEED)
    plain = sample_calls(model, requests, {"Calculator": PROMPT}, method)
    traced = sample_calls(model, requests, {"Calculator": PROMPT}, method, trace=True)
    assert [sampled.trace for sampled in plain] == [None] * len(TEXTS)
    for without, sampled in zip(plain, traced, strict=True):
        assert replace(sampled, trace=None, work=without.work) == without
        trace = sampled.trace
        assert trace is not None
        assert len(trace.p_api) == len(trace.starts)
        assert len(trace.draws) == sampled.draws == METHOD.m * len(trace.positions)
        drawn = zip(np.repeat(trace.positions, METHOD.m).tolist(), trace.draws, strict=True)
        calls = Counter((index, parsed) for index, (_, parsed) in drawn if isinstance(parsed, str))
        assert calls == found(sampled)
        assert all(
            written.startswith("Calculator(") for written, call in trace.draws if isinstance(call, str)
        )


def test_a_text_that_does_not_fit_has_no_trace() -> None:
    model = language_model("llama", "bytes")
    [long] = texts("The bakery sold 48 rolls. " * 100)
    method = MethodConfig(calculator=METHOD, seed=SEED)
    [sampled] = sample_calls(
        model, [SamplingRequest(long, "Calculator")], {"Calculator": PROMPT}, method, trace=True
    )
    assert sampled.failed is not None
    assert sampled.trace is None
