"""Models of known shapes with random weights: made in their type, and drawing calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.random_models import SHAPES, random_model
from bench.workload import DEMO, PROMPTS, make_model, make_texts, make_tools
from pipeline.base.config import MethodConfig
from pipeline.base.cost import ModelShape
from pipeline.engine.loading import prepare_language_model
from pipeline.method.annotator import Annotator
from tools_service.base.checkpoints import load_tokenizer
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

# The same fields in two vocabularies of configurations. A narrow Llama needs larger weights to depend on its
# context: in half precision the checks at load could not tell a wrong one from rounding.
LLAMA: dict[str, float] = {
    "initializer_range": 0.12,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
}
GPT: dict[str, float] = {"n_embd": 128, "n_head": 2, "n_layer": 4}
TINY: dict[str, dict[str, float]] = {
    "gpt2-small": GPT,
    "gptj-6b": {**GPT, "rotary_dim": 32},
    "llama-1b": LLAMA,
    "llama-8b": LLAMA,
}


def tiny(name: str) -> Callable[[], Any]:
    """The shape called `name`, with few and small layers."""
    whole = SHAPES[name]

    def shape() -> Any:
        config = whole()
        for field, value in {
            **TINY[name],
            "vocab_size": 3_000,
        }.items():
            setattr(config, field, value)
        return config

    return shape


def test_every_shape_is_tested() -> None:
    assert TINY.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gpt2-small", 0.085), ("llama-1b", 0.973), ("gptj-6b", 5.637), ("llama-8b", 6.979)],
)
def test_shapes_have_the_sizes_of_the_published_models(name: str, billions: float) -> None:
    """The weights that a token passes, without embeddings and output."""
    from transformers import AutoModelForCausalLM

    from tools_service.base.checkpoints import empty_model

    config = SHAPES[name]()
    with torch.device("meta"):
        shape = ModelShape.of(empty_model(AutoModelForCausalLM, config))
    assert shape.parameters == pytest.approx(billions * 1e9, rel=1e-3)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_become_calls(name: str, dtype: torch.dtype) -> None:
    tokenizer = load_tokenizer(DEMO, "--model")
    model = random_model(tiny(name), tokenizer, torch.device("cpu"), dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    # As from_pretrained has it: rotary positions in half precision would coincide.
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} <= {torch.float32}
    engine = prepare_language_model(model, tokenizer)
    settings = ToolMethod(tau_s=0.0, k=3, m=4, tau_f=0.0)
    method = MethodConfig(tools=("Calculator",), prompts=PROMPTS, calculator=settings)
    texts = make_texts(engine, method, 3, ["demo/pages"], 60)
    annotations = Annotator(engine, make_tools(), method).annotate(texts)
    assert not any(annotation.reason for annotation in annotations)
    assert sum(funnel.candidates for annotation in annotations for funnel in annotation.funnel) > 3
    assert any(annotation.calls for annotation in annotations)


def test_a_shape_is_a_model_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "llama-1b", tiny("llama-1b"))
    engine = make_model("llama-1b", "cpu", "bfloat16", 512)
    assert (engine.vocabulary_size, engine.max_batch_tokens) == (3_000, 512)
    assert engine.model.dtype == torch.bfloat16
