"""The engine against plain forwards, and what it refuses to run."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from bench.fixtures.small_models import (
    ARCHITECTURES,
    TOKENIZERS,
    causal_lm,
    language_model,
    little_memory,
    tokenizer,
)
from pipeline.base.records import Cost
from pipeline.engine.errors import ModelError, NonFiniteError
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.usage import Usage
from tests.pipeline import oracle
from tools_service.syntax.prompts import PromptTemplate

pytestmark = pytest.mark.unit

PROMPT = PromptTemplate("Calculator", "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")
TEXTS = ["The bakery sold 48 rolls.", "é “x” 67", "67"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gptj_padded"])
def test_positions_have_the_probabilities_of_plain_forwards(architecture: str, kind: str) -> None:
    model = language_model(architecture, kind)
    ids = [pieces.ids for pieces in model.encode(TEXTS)]
    tree = PrefilledBatch(model, model.prompt(PROMPT), ids, [Usage() for _ in ids])
    for text, found in zip(TEXTS, tree.api_probabilities(), strict=True):
        plain = [oracle.p_api(model, PROMPT, text, position) for position in range(len(found))]
        np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gptj_padded"])
def test_token_logprobs_are_those_of_plain_forwards(architecture: str, kind: str) -> None:
    model = language_model(architecture, kind)
    sequences = [pieces.ids for pieces in model.encode(TEXTS[:2])]
    wanted = [np.array([2, len(sequence) - 1]) for sequence in sequences]
    found, _ = token_logprobs(model, sequences, wanted, "plus")
    for sequence, indices, logprobs in zip(sequences, wanted, found, strict=True):
        for index, logprob in zip(indices, logprobs, strict=True):
            p = oracle.probabilities(model, sequence[:index].tolist())[sequence[index]]
            assert logprob == pytest.approx(math.log(p), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gptj", "gptj_padded"])
def test_a_row_that_outlives_the_first_keeps_its_own_cache(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.tree_attention._COMPACT_SHARE", 99.0)
    model = language_model(architecture, "bytes")
    ids = [pieces.ids for pieces in model.encode(TEXTS[:2])]
    tree = PrefilledBatch(model, model.prompt(PROMPT), ids, [Usage() for _ in ids])
    tree.extend(np.array([0, 1]), np.array([0, 0]), tree.first_slot + np.array([2, 1]), np.array([7, 8]))
    tree.extend(np.array([1, 1]), np.array([0, 1]), np.array([0, 0]), np.array([9, 10]))
    assert len(tree.hidden_states) == 1
    found = tree.log_probability(np.array([1, 1]), np.array([0, 1]), np.array([11, 12]))
    for token, target, logprob in ((9, 11, found[0]), (10, 12, found[1])):
        plain = oracle.probabilities(model, [*oracle.before(model, PROMPT, TEXTS[1], 1), 8, token])[target]
        assert logprob == pytest.approx(math.log(plain), abs=1e-4)


def test_logits_are_computed_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama", "bytes")
    sequence = model.encode(["The bakery sold 48 rolls on Monday"])[0].ids
    wanted = [np.arange(1, len(sequence))]
    [whole], _ = token_logprobs(model, [sequence], wanted, "plus")
    monkeypatch.setattr("pipeline.engine.model._LOGITS_ALIVE", 2 * model.vocabulary_size)
    [chunked], _ = token_logprobs(model, [sequence], wanted, "plus")
    np.testing.assert_allclose(whole, chunked, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gptj", "gptj_padded"])
def test_sequences_that_find_no_memory_are_run_in_smaller_batches(architecture: str) -> None:
    model = language_model(architecture, "bytes")
    sequences = [pieces.ids for pieces in model.encode(TEXTS[:2] * 3)]
    wanted = [np.arange(1, len(sequence)) for sequence in sequences]
    expected, _ = token_logprobs(model, sequences, wanted, "plus")
    model.usage.clear()
    with little_memory(model, 24) as refused:
        found, costs = token_logprobs(model, sequences, wanted, "plus")
        assert model.max_batch_tokens < 16_384
    assert refused
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert sum(costs, Cost()) == model.usage["plus"]
    with little_memory(model, 5), pytest.raises(ModelError, match="out of memory"):
        token_logprobs(model, sequences, wanted, "plus")


def test_a_batch_of_rows_stays_under_its_tokens_and_loses_none() -> None:
    model = language_model("llama", "bytes", max_batch_tokens=64)
    lengths = [5, 60, 7, 9, 30, 31, 2, 500]
    batches = model.batch_by_length(lengths, prefix=3)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[index] for index in batch) + 3) <= 64
    assert model.batch_by_length([]) == []


def test_rows_share_a_batch_only_while_their_padding_costs_less_than_a_forward() -> None:
    model = language_model("llama", "bytes")
    assert model.batch_by_length([10, 900, 12, 880, 11]) == [[1, 3], [2, 4, 0]]
    assert model.batch_by_length([10, 900, 12, 880, 11], forwards=100) == [[1, 3, 2, 4, 0]]


@pytest.mark.parametrize(
    ("architecture", "unpads"), [(name, True) for name in ARCHITECTURES] + [("gptj_padded", False)]
)
def test_padding_is_left_out_where_the_architecture_allows_and_changes_nothing(
    architecture: str, unpads: bool
) -> None:
    model = language_model(architecture, "bytes")
    assert model.can_unpad == unpads
    ids = [pieces.ids for pieces in model.encode(TEXTS)]
    usage = [Usage() for _ in ids]
    tree = PrefilledBatch(model, model.prompt(PROMPT), ids, usage)
    unpadded = tree.api_probabilities()
    assert (sum(text["positions"].padding for text in usage) == 0) == unpads
    model.can_unpad = False
    padded = PrefilledBatch(model, model.prompt(PROMPT), ids, [Usage() for _ in ids]).api_probabilities()
    model.can_unpad = unpads
    for one, other in zip(unpadded, padded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gptj_padded"])
def test_a_prompt_is_shared_where_the_architecture_allows_and_changes_nothing(architecture: str) -> None:
    model = language_model(architecture, "bytes")
    assert model.shares_prompts == model.can_unpad
    ids = [pieces.ids for pieces in model.encode(TEXTS)]
    other = PromptTemplate("QA", "Ask or do not.\n\nInput:", "\nOutput:")

    def run() -> tuple[list[np.ndarray], np.ndarray, int]:
        """p(<API>), and log-probabilities on branches of both tools' texts in one tree; its cache slots."""
        trees = []
        for template in (PROMPT, other):
            tree = PrefilledBatch(model, model.prompt(template), ids, [Usage() for _ in ids])
            probabilities.extend(tree.api_probabilities())
            tree.branch(np.array([0, 0, 1, 2]), np.array([1, 3, 2, 1]))
            trees.append(tree)
        tree, newer = trees
        tree.admit(newer)
        tree.extend(np.array([0, 0, 4, 5]), np.array([0, 1, 0, 0]), np.array([0, 1, 0, 0]), np.full(4, 7))
        tree.extend(np.array([4, 4]), np.array([0, 1]), np.array([0, 0]), np.array([8, 9]))
        found = tree.log_probability(np.array([4, 4]), np.array([0, 1]), np.array([5, 6]))
        return probabilities, found, tree.cache.length

    probabilities: list[np.ndarray] = []
    shared, found, slots = run()
    probabilities, can_share, model.can_share_prompts = [], model.can_share_prompts, False
    copied, expected, all_slots = run()
    model.can_share_prompts = can_share
    for one, another in zip(shared, copied, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (slots < all_slots) == model.can_unpad


def test_room_counts_the_text_twice() -> None:
    model = language_model("llama", "bytes")
    prompt = model.prompt(PROMPT)
    free = model.max_positions - prompt.length - len(prompt.suffix) - len(model.call_tokens.api) - 20
    assert model.max_text_tokens(PROMPT, 20) == free // 2
    assert model.prompt(PROMPT) is prompt


def test_one_offset_of_a_text_has_one_position() -> None:
    """A space of its own before the first word: both tokens would be offset 0 of x."""
    model = language_model("llama", "words")
    [pieces] = model.encode(["9 é"])
    assert [model.call_tokens.token_strings[token] for token in pieces.ids[:2]] == [" ", "9"]
    assert pieces.starts[:2].tolist() == [0, -1]


class IgnoresPositions(LlamaForCausalLM):
    """A model with a position of its own making."""

    def forward(self, *args: Any, position_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        return super().forward(*args, **inputs)

    @property
    def base_model(self) -> Any:
        return self


class IgnoresMask(LlamaForCausalLM):
    """A model that attends to whatever is in the cache."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Any:
        return super().forward(*args, **inputs)

    @property
    def base_model(self) -> Any:
        return self


@pytest.mark.parametrize("kind", [IgnoresPositions, IgnoresMask])
def test_a_model_that_ignores_what_it_is_given_is_refused(kind: type[LlamaForCausalLM]) -> None:
    with pytest.raises(ModelError, match="does not honour"):
        prepare_language_model(kind(causal_lm("llama", 420).config).eval(), tokenizer("bytes"))


def test_an_architecture_without_position_ids_is_refused() -> None:
    config = BloomConfig(vocab_size=420, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        prepare_language_model(BloomForCausalLM(config).eval(), tokenizer("bytes"))


def test_logits_that_are_scaled_after_the_head_are_right() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    scaled = CohereForCausalLM(CohereConfig(vocab_size=420, logit_scale=0.5, initializer_range=0.3, **shape))
    model = prepare_language_model(scaled.eval(), tokenizer("bytes"))
    assert not model.separate_head
    sequence = model.encode(["The bakery sold 48"])[0].ids
    [[found]], _ = token_logprobs(model, [sequence], [np.array([3])], "plus")
    plain = oracle.probabilities(model, sequence[:3].tolist())[sequence[3]]
    assert found == pytest.approx(math.log(plain), abs=1e-4)


def test_a_sliding_window_bounds_the_context() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=420, sliding_window=40, num_key_value_heads=2, **shape)
    assert prepare_language_model(MistralForCausalLM(config).eval(), tokenizer("bytes")).max_positions == 40


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match="embeddings"):
        prepare_language_model(causal_lm("llama", 100), tokenizer("bytes"))


def test_a_score_that_is_not_finite_survives_the_way_to_another_process() -> None:
    sent = NonFiniteError("the loss (plus)", 7, "Calendar", 3)
    came = pickle.loads(pickle.dumps(sent))  # noqa: S301
    assert str(came) == str(sent) == "text 7, Calendar, position 3: the loss (plus) is not finite"
    assert (came.text_id, came.tool, came.position) == (7, "Calendar", 3)
