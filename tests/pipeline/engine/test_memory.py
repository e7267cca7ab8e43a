"""What a forward may have: the line through two rehearsals, and what a rehearsal leaves behind."""

from __future__ import annotations

import pytest

from bench.fixtures.small_models import causal_lm, language_model, tokenizer
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.memory import fitting_batch_tokens, run_profile

pytestmark = pytest.mark.unit


def test_the_free_memory_is_divided_by_what_a_token_takes() -> None:
    """100 tokens took 1,500 bytes, 300 took 3,500: 10 each and 500 at once. Of 10,000 free 8,500 are used."""
    assert fitting_batch_tokens({100: 1_500, 300: 3_500}, 10_000) == 800


def test_at_least_what_has_been_rehearsed_fits() -> None:
    assert fitting_batch_tokens({100: 1_500, 300: 3_500}, 10) == 100


def test_a_model_too_small_to_measure_gets_a_bounded_batch() -> None:
    assert fitting_batch_tokens({100: 5, 300: 5}, 10**12) == 2**18


@pytest.mark.parametrize("architecture", ["llama", "gptj", "gpt2"])
def test_a_rehearsal_grows_with_its_texts_and_is_not_counted(architecture: str) -> None:
    model = language_model(architecture, "bytes")
    before = dict(model.usage)
    few, many = run_profile(model, 1), run_profile(model, 2)
    assert many == 2 * few
    assert (model.usage, model.max_batch_tokens) == (before, 16_384)


def test_a_short_context_can_be_rehearsed() -> None:
    assert (
        run_profile(prepare_language_model(causal_lm("gpt2", 420, positions=96), tokenizer("bytes")), 1) > 0
    )
