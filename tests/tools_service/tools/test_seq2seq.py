"""Generation from several encoded parts, against a slow reference that encodes and decodes one by one."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tools_service.small_seq2seq import bart, byte_level_tokenizer, t5
from tools_service.tools.seq2seq import Ids, Seq2Seq, well_formed

pytestmark = pytest.mark.unit

LIMITS = [8, 7, 8, 5, 3]
INPUTS: list[list[Ids]] = [
    [[5, 9, 17, 200, 31, 1]],
    [[40, 41, 1], [42, 43, 44, 45, 46, 47, 48, 1]],
    [[7, 1], [8, 1], [9, 10, 11, 12, 1]],
    [[60 + n for n in range(30)] + [1]],
    [[99, 98, 1], [99, 98, 1]],
]


@cache
def words() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(["a few words to merge"])


@cache
def random_model(kind: str) -> PreTrainedModel:
    """Random, with attention that matters and outputs that differ."""
    model = t5(len(words()), tied=False) if kind == "t5" else bart(len(words()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "shared" not in name:
                parameter.mul_(6.0 if kind == "bart" else 2.0)
        if kind == "bart":
            model.final_logits_bias[0, model.config.eos_token_id] = -100.0
    return model.eval()


def generated(
    kind: str, inputs: list[list[Ids]], max_batch_tokens: int = 10_000, beams: int = 1
) -> list[Ids]:
    seq2seq = Seq2Seq(random_model(kind), words(), max_batch_tokens=max_batch_tokens, beams=beams)
    return seq2seq.generate_ids(inputs, LIMITS[: len(inputs)])


def reference(kind: str, parts: list[Ids], limit: int) -> Ids:
    """Encode every part alone, decode token by token without a cache; greedy."""
    model = random_model(kind)
    start, end = model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id
    with torch.inference_mode():
        states = [model.get_encoder()(input_ids=torch.tensor([part])).last_hidden_state for part in parts]
        said = [start]
        while len(said) <= limit and (len(said) == 1 or said[-1] != end):
            logits = model(
                encoder_outputs=(torch.cat(states, dim=1),), decoder_input_ids=torch.tensor([said])
            ).logits
            said.append(int(logits[0, -1].argmax()))
    return said[1:]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_parts_are_encoded_alone_and_decoded_together(kind: str) -> None:
    alone = [reference(kind, parts, limit) for parts, limit in zip(INPUTS, LIMITS, strict=True)]
    assert generated(kind, INPUTS) == alone
    assert len({tuple(ids) for ids in alone}) == len(INPUTS)


def test_one_part_is_plain_generation() -> None:
    model = random_model("t5")
    [part] = INPUTS[0]
    plain = model.generate(torch.tensor([part]), do_sample=False, num_beams=1, max_new_tokens=LIMITS[0])
    assert generated("t5", [[part]]) == [plain[0, 1:].tolist()]


def test_the_order_of_parts_does_not_matter_to_t5_but_their_number_does() -> None:
    parts = INPUTS[1]
    [together] = generated("t5", [parts])
    assert generated("t5", [parts[::-1]]) == [together]
    assert generated("t5", [parts[:1]]) != [together]


@pytest.mark.parametrize("beams", [1, 3])
def test_an_output_does_not_depend_on_the_batch(beams: int) -> None:
    seq2seq = Seq2Seq(random_model("t5"), words(), max_batch_tokens=10_000, beams=beams)
    together = seq2seq.generate_ids(INPUTS, LIMITS)
    for parts, limit, ids in zip(INPUTS, LIMITS, together, strict=True):
        assert seq2seq.generate_ids([parts], [limit]) == [ids]
    assert generated("t5", INPUTS, max_batch_tokens=12, beams=beams) == together


def test_a_text_that_does_not_end_within_its_limit_is_none() -> None:
    seq2seq = Seq2Seq(random_model("bart"), words(), max_batch_tokens=100)
    assert seq2seq.generate(INPUTS, LIMITS) == [None] * len(INPUTS)
    with torch.no_grad():
        random_model("bart").final_logits_bias[0, 1] = 100.0  # nothing but the end
    assert seq2seq.generate(INPUTS, LIMITS) == [""] * len(INPUTS)
    random_model.cache_clear()


def test_a_checkpoints_settings_for_another_task_are_left_out() -> None:
    model = random_model("bart")
    Seq2Seq(model, words(), max_batch_tokens=100)
    assert model.generation_config.min_length is None
    assert model.generation_config.num_beams is None
    assert model.generation_config.forced_eos_token_id is None
    assert model.generation_config.decoder_start_token_id == 1


def test_no_inputs_no_outputs() -> None:
    assert generated("t5", []) == []


def test_halves_of_surrogate_pairs_become_question_marks() -> None:
    assert well_formed("a\ud800b\udfff c 🙂") == "a?b? c 🙂"
