"""Step 4: losses by hand and against the plain procedure, the lazy l_call, what is not scored and why."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.fixtures.small_models import ARCHITECTURES, TOKENIZERS, causal_lm, language_model, tokenizer
from pipeline.base.records import Call, Candidate, Document, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import WEIGHTS, ScoredText, kept, only_after, score_calls, weighted_loss
from tests.pipeline import oracle
from tools_service.syntax.calls import linearise

pytestmark = pytest.mark.unit

TEXTS = [
    Text(1, Document("a#1"), "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days."),
    Text(2, Document("a#2"), "é “x” 67"),
    Text(3, Document("a#3"), "Nothing to call here."),
]
ALWAYS: dict[str, float] = {"Calculator": -1e9, "MT": -1e9, "QA": -1e9}


def executed(
    model: LanguageModel,
    text: Text,
    index: int,
    argument: str,
    result: str | None,
    tool: str = "Calculator",
) -> ExecutedCall:
    position = int(model.encode([text.text])[0].starts[index])
    return ExecutedCall(Candidate(tool, position, index, 0.5, argument), result, None if result else "none")


def examples(model: LanguageModel) -> list[list[ExecutedCall]]:
    last = len(model.encode([TEXTS[1].text])[0].ids) - 1
    return [
        [
            executed(model, TEXTS[0], 8, "48 + 67", "115"),
            executed(model, TEXTS[0], 2, "48 + 67", "115"),
            executed(model, TEXTS[0], 5, "48", "48"),
            executed(model, TEXTS[0], 5, "Where?", "Oslo", "QA"),
        ],
        [executed(model, TEXTS[1], 1, "67", "67"), executed(model, TEXTS[1], last, "67", "67")],
        [],
    ]


def score(model: LanguageModel, floor: float = -1e9) -> list[ScoredText]:
    return score_calls(model, TEXTS, examples(model), dict.fromkeys(ALWAYS, floor))


def tokens(scored: ScoredText) -> int:
    return sum(part.run.tokens for part in scored.work)


def test_the_weights_are_five_fifteenths_and_down_and_sum_to_one() -> None:
    """Mistakes seen elsewhere: weights that sum to 3, a plain mean."""
    assert pytest.approx([5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15]) == WEIGHTS.tolist()
    assert WEIGHTS.sum() == pytest.approx(1.0)


def test_the_weighted_loss_by_hand() -> None:
    assert weighted_loss(np.log([0.5] * 5)) == pytest.approx(math.log(2))
    assert weighted_loss(np.log([0.5, 0.25])) == pytest.approx((5 * math.log(2) + 4 * math.log(4)) / 15)
    assert weighted_loss(np.log([1, 1, 1, 1, 0.1])) == pytest.approx(math.log(10) / 15)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_the_plain_procedure(architecture: str, kind: str) -> None:
    """One mistake seen elsewhere: a prefix one token short of the position that is scored."""
    model = language_model(architecture, kind)
    scored = score(model)
    assert [len(one.calls) for one in scored] == [4, 2, 0]
    for text, one, given in zip(TEXTS, scored, examples(model), strict=True):
        index = {call.candidate.position: call.candidate.token_index for call in given}
        for call in one.calls[:2]:
            i, z = index[call.position], linearise(call.tool, call.input)
            with_result = linearise(call.tool, call.input, call.result)
            assert call.l_plus == pytest.approx(oracle.loss(model, with_result, text.text, i), abs=1e-4)
            assert call.l_empty == pytest.approx(oracle.loss(model, "", text.text, i), abs=1e-4)
            assert call.l_call == pytest.approx(oracle.loss(model, z, text.text, i), abs=1e-4)
            assert call.l_call is not None
            assert call.gain == min(call.l_empty, call.l_call) - call.l_plus


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_calls_are_kept_as_by_the_plain_procedure(architecture: str) -> None:
    model, tau_f = language_model(architecture, "bytes"), 0.05
    [first, *_] = score(model, tau_f)
    tokens = {call.candidate.position: call.candidate.token_index for call in examples(model)[0]}
    for call in first.calls:
        plain = oracle.gain(model, TEXTS[0].text, tokens[call.position], call.tool, call.input, call.result)
        assert kept(call, tau_f) == (plain >= tau_f)


def test_losses_do_not_depend_on_what_is_scored_beside_them() -> None:
    model, apart = language_model("llama", "bytes"), language_model("llama", "bytes", max_batch_tokens=1)
    together = score(model)
    for index, text in enumerate(TEXTS):
        [alone] = score_calls(apart, [text], [examples(model)[index]], ALWAYS)
        assert [part.lower_bound for part in alone.work] == [
            part.lower_bound for part in together[index].work
        ]
        assert tokens(alone) == tokens(together[index])
        for one, other in zip(alone.calls, together[index].calls, strict=True):
            assert one.l_plus == pytest.approx(other.l_plus, abs=1e-4)
            assert one.gain == pytest.approx(other.gain, abs=1e-4)


def test_l_call_is_run_only_where_it_can_matter() -> None:
    model = language_model("llama", "bytes")
    everything = score(model)
    bounds = sorted(call.l_empty - call.l_plus for one in everything for call in one.calls)
    floor = (bounds[2] + bounds[3]) / 2
    lazy = score(model, floor)
    full_calls, lazy_calls = ([call for one in scored for call in one.calls] for scored in (everything, lazy))
    calls = list(zip(full_calls, lazy_calls, strict=True))
    assert sum(call.l_call is None for _, call in calls) == 3
    for full, call in calls:
        assert kept(call, floor) == kept(full, floor)
        if call.l_call is None:
            assert call.gain == call.l_empty - call.l_plus < floor
    assert sum(map(tokens, lazy)) < sum(map(tokens, everything))


def test_all_losses_adds_what_a_threshold_leaves_out_and_changes_nothing_else() -> None:
    model = language_model("llama", "bytes")
    bounds = sorted(c.l_empty - c.l_plus for text in score(model) for c in text.calls)
    floor = dict.fromkeys(ALWAYS, (bounds[2] + bounds[3]) / 2)
    lazy = score_calls(model, TEXTS, examples(model), floor)
    full = score_calls(model, TEXTS, examples(model), floor, all_losses=True)
    added = 0
    for without, call in zip(all_calls(lazy), all_calls(full), strict=True):
        assert call.l_call is not None
        if without.l_call is None:
            added += 1
            assert call.gain == min(call.l_empty, call.l_call) - call.l_plus <= without.gain
            call = replace(call, l_call=None, gain=without.gain)
        assert call == without
    assert added == 3


def all_calls(scored: list[ScoredText]) -> list[Call]:
    return [call for text in scored for call in text.calls]


def test_the_gain_counts_the_call_without_its_result() -> None:
    """One mistake seen elsewhere: a gain against the empty prefix alone."""
    lower = Call("QA", 0, 0.5, "x", "y", l_plus=1.0, l_empty=3.0, l_call=1.5, gain=0.5)
    assert not kept(lower, 1.0)
    scored = [call for one in score(language_model("gptj", "words")) for call in one.calls]
    assert any(call.l_call is not None and call.l_call < call.l_empty for call in scored)
    assert all(call.gain <= call.l_empty - call.l_plus for call in scored)


def test_a_threshold_below_what_was_scored_for_is_refused() -> None:
    call = Call("QA", 0, 0.5, "x", "y", l_plus=1.0, l_empty=1.8, l_call=None, gain=0.8)
    assert not kept(call, 1.0)
    with pytest.raises(ValueError, match=r"QA\(x\) at 0"):
        kept(call, 0.5)


def test_the_three_prefixes_differ() -> None:
    """One mistake seen elsewhere: a context cropped so that inputs with and without the call are the same."""
    for call in score(language_model("gpt_neox", "pieces"))[0].calls:
        assert call.l_call is not None
        assert len({round(call.l_plus, 6), round(call.l_empty, 6), round(call.l_call, 6)}) == 3


def test_one_forward_serves_every_position_of_a_call() -> None:
    model = language_model("llama", "bytes")
    text, ids = TEXTS[0], model.encode([TEXTS[0].text])[0].ids
    calls = [executed(model, text, i, "48", "48") for i in (2, 5, 9)]
    z = len(model.encode([linearise("Calculator", "48", "48")[1:]])[0].ids)
    [scored] = score_calls(model, [text], [calls], {"Calculator": 1e9})
    reach = 9 + len(WEIGHTS)
    assert len(ids) > reach
    assert tokens(scored) == (reach - 1) + (z + reach - 1)


def test_without_a_bos_the_first_position_is_never_scored_shifted() -> None:
    for kind, count in (("bytes", 0), ("pieces", 1)):
        model = language_model("llama", kind)
        [scored] = score_calls(model, TEXTS[:1], [[executed(model, TEXTS[0], 0, "48", "48")]], ALWAYS)
        assert len(scored.calls) == count
        assert scored.discarded == ({} if count else {"Calculator": {"call_not_scorable": 1}})


def test_a_prefix_too_long_for_the_context_is_recorded() -> None:
    model = prepare_language_model(causal_lm("gpt2", 420, positions=64), tokenizer("bytes"))
    calls = [executed(model, TEXTS[0], 4, "48", result) for result in ("48", "x" * 80)]
    [scored] = score_calls(model, TEXTS[:1], [calls], ALWAYS)
    assert [call.result for call in scored.calls] == ["48"]
    assert scored.discarded == {"Calculator": {"context": 1}}


def test_calls_without_a_result_are_left_to_the_execution_and_unwritable_ones_recorded() -> None:
    model = language_model("llama", "bytes")
    calls = [executed(model, TEXTS[0], 4, "48", None), executed(model, TEXTS[0], 4, "48", "a ] b")]
    [scored] = score_calls(model, TEXTS[:1], [calls], ALWAYS)
    assert (scored.calls, scored.work) == ((), ())
    assert scored.discarded == {"Calculator": {"unwritable": 1}}


def test_translations_of_text_that_only_comes_later_are_dropped() -> None:
    text = "It says hola amigos, hello friends."
    assert only_after("hola amigos", text, 7)
    assert not only_after("hola amigos", text, 20)
    assert not only_after("buenos", text, 7)
    assert not only_after("hola", "hola, hola", 5)
    model = language_model("llama", "bytes")
    given = Text(9, Document("a#9"), text)
    calls = [executed(model, given, 2, "hola amigos", "hello friends", tool) for tool in ("MT", "QA")]
    [scored] = score_calls(model, [given], [calls], ALWAYS, input_rule={"MT"})
    assert [call.tool for call in scored.calls] == ["QA"]
    assert scored.discarded == {"MT": {"input_only_after_position": 1}}


def test_a_loss_that_is_no_number_stops_with_text_tool_and_position() -> None:
    broken = causal_lm("llama", 420)
    model = prepare_language_model(broken, tokenizer("bytes"))
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = torch.inf
    with pytest.raises(NonFiniteError, match="text 1, Calculator, position 4"):
        score_calls(model, TEXTS[:1], [[executed(model, TEXTS[0], 4, "48", "48")]], ALWAYS)


def bigrams(table: torch.Tensor) -> LanguageModel:
    """A language model without layers: p(next | token) is exactly `table` [V, V]."""
    words = tokenizer("words")
    size = len(table)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=0,
        num_attention_heads=1,
        tie_word_embeddings=False,
        rms_norm_eps=0.0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        model.get_output_embeddings().weight.copy_(table.log().T / math.sqrt(size))
    return prepare_language_model(model, words)


def test_gain_by_hand() -> None:
    """A bigram model: only the text's first token sees the prefix, and only the prefix's last token.

    p(The | <s>) = 1/2, p(The | )]) = 1/4, p(The | ]) = 7/8; all else is uniform and cancels. So at position
    0, with the weight 5/15 on the first token: L_empty - L+ = 1/3 ln(7/4), L_call - L+ = 1/3 ln(7/2).
    """
    words = tokenizer("words")
    size = len(words) + len(words) % 2
    the, close, bare, bos = words.convert_tokens_to_ids(["▁The", ")]", "]", "<s>"])
    table = torch.full((size, size), 1 / size)
    for last, p in ((bos, 1 / 2), (close, 1 / 4), (bare, 7 / 8)):
        table[last] = (1 - p) / (size - 1)
        table[last, the] = p
    model = bigrams(table)
    given = ExecutedCall(Candidate("Calculator", 0, 0, 0.5, "9"), "7", None)
    [scored] = score_calls(model, TEXTS[:1], [[given]], {"Calculator": 0.1})
    [call] = scored.calls
    assert call.l_call is not None
    assert call.l_empty - call.l_plus == pytest.approx(math.log(7 / 4) / 3, abs=1e-5)
    assert call.l_call - call.l_plus == pytest.approx(math.log(7 / 2) / 3, abs=1e-5)
    assert call.gain == pytest.approx(math.log(7 / 4) / 3, abs=1e-5)
    rest = (4 + 3 + 2 + 1) / 15 * math.log(size)
    assert call.l_plus == pytest.approx(-math.log(7 / 8) / 3 + rest, abs=1e-4)
