"""The last layer runs wanted tokens only: what is found, what is left out, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.fixtures import small_run
from bench.fixtures.small_models import ARCHITECTURES, causal_lm, language_model
from pipeline.base.records import Annotation
from pipeline.engine import last_layer
from pipeline.engine.branches import Branch, branch_logprobs
from pipeline.engine.last_layer import leave_out_unwanted, only_wanted
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.row_cache import SavedRow
from pipeline.engine.usage import Usage
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.method.annotator import Annotator
from tools_service.config import ToolsConfig
from tools_service.syntax.prompts import PromptTemplate
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

ALL = [*ARCHITECTURES, "gptj_padded"]
PROMPT = PromptTemplate("Calculator", "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")
TEXTS = ["The bakery sold 48 rolls.", "é “x” 67", "67"]
PARTS = {
    "llama": ["self_attn.q_proj", "self_attn.o_proj", "mlp"],
    "qwen3": ["self_attn.q_proj", "self_attn.o_proj", "mlp"],
    "gpt_neox": ["attention.dense", "mlp"],
    "gpt2": ["attn.c_proj", "mlp"],
    "gptj": ["attn.q_proj", "attn.out_proj", "mlp"],
}


def results(model: LanguageModel) -> list[np.ndarray]:
    """What prefill, scoring, branches and generation read."""
    ids = [pieces.ids for pieces in model.encode(TEXTS)]
    tree = PrefilledBatch(model, model.prompt(PROMPT), ids, [Usage() for _ in ids])
    found = tree.api_probabilities()
    wanted = [np.array([2, len(row) - 1]) for row in ids[:2]]
    found += token_logprobs(model, ids[:2], wanted, "plus")[0]
    branches = [
        [Branch(3, np.array([5, 6, 7]), np.array([0, 2]))],
        [Branch(2, np.array([8, 9]), np.array([1]))],
    ]
    found += [logprobs for row in branch_logprobs(model, ids[:2], branches, "plus") for logprobs in row]
    batch = DecodeBatch(model)
    batch.join([SavedRow(), SavedRow()], [row.tolist() for row in ids[:2]])
    batch.step([3, 4])
    return [*found, batch.logits.numpy()]


def annotated(model: LanguageModel, folder: Path) -> list[Annotation]:
    method = small_run.method(small_run.write_prompts(folder))
    return Annotator(model, LocalTools.start(ToolsConfig(), method.tools), method).annotate(
        small_run.texts(4)
    )


@pytest.mark.parametrize("architecture", ALL)
def test_results_are_those_of_a_whole_last_layer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model(architecture, "pieces")
    assert model.can_leave_out_unwanted
    found = results(model)
    monkeypatch.setattr(model, "can_leave_out_unwanted", False)
    for one, other in zip(found, results(model), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_kept_calls_stay_and_nobody_reads_an_unwanted_token(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = last_layer._Part.spread
    spoilt = []

    def spoil(part: Any, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        result, wanted = spread(part, module, inputs, output), last_layer._wanted.get()
        if result is not None and wanted is not None:
            unwanted = torch.ones(wanted.tokens, dtype=torch.bool)
            unwanted[wanted.index] = False
            result.view(wanted.tokens, -1)[unwanted] = torch.nan
            spoilt.append(int(unwanted.sum()))
        return result

    monkeypatch.setattr(last_layer._Part, "spread", spoil)
    model = language_model.__wrapped__(architecture, "pieces")  # with hooks of its own
    found = annotated(model, tmp_path)
    assert sum(spoilt)
    monkeypatch.setattr(model, "can_leave_out_unwanted", False)
    expected = annotated(model, tmp_path)
    assert any(one.calls for one in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.funnel == other.funnel
        assert [call.input for call in one.calls] == [call.input for call in other.calls]
        losses = [(call.l_plus, call.l_empty) for call in other.calls]
        assert [(call.l_plus, call.l_empty) for call in one.calls] == [
            pytest.approx(pair, abs=1e-5) for pair in losses
        ]


@pytest.mark.parametrize("architecture", PARTS)
def test_parts_are_found_by_trial(architecture: str) -> None:
    model, found = causal_lm(architecture, 50), list[str]()
    run = _run(model)
    names = {module: name for name, module in model.named_modules()}
    before = set(_hooked(model))
    assert leave_out_unwanted(model, run) == len(PARTS[architecture])
    found = [names[module] for module in _hooked(model) if module not in before]
    assert sorted(found) == sorted(
        f"{_last_layer_name(list(names.values()))}.{part}" for part in PARTS[architecture]
    )


class _Mixing(nn.Module):
    """An MLP that also looks at the tokens before."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mlp(x + 1e-9 * x.cumsum(1))
        return mixed


def test_a_part_that_looks_at_other_tokens_runs_them_all() -> None:
    model: Any = causal_lm("llama", 50)
    layer = model.model.layers[-1]
    layer.mlp = _Mixing(layer.mlp)
    leave_out_unwanted(model, _run(model))
    assert layer.mlp not in _hooked(model)
    assert layer.mlp.mlp in _hooked(model)  # its own work concerns one token, and is found within it


def test_a_model_without_a_list_of_its_layers_is_left_alone() -> None:
    model: Any = causal_lm("llama", 50)
    model.config.num_hidden_layers = 3
    assert leave_out_unwanted(model, _run(model)) == 0
    # A layer that runs twice gives keys and values in both.
    model.config.num_hidden_layers = 2
    model.model.layers[0] = model.model.layers[1]
    assert leave_out_unwanted(model, _run(model)) == 0
    assert not _hooked(model)


def test_the_last_mlp_runs_wanted_tokens_if_there_are_few() -> None:
    model: Any = causal_lm("llama", 50)
    leave_out_unwanted(model, _run(model))
    mlps = [layer.mlp for layer in model.model.layers]
    fed: list[int] = []
    hooks = [
        mlp.down_proj.register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[1]))
        for mlp in mlps
    ]
    ids, index = torch.arange(10)[None], torch.tensor([3, 9])
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits
        with only_wanted(index, 10):
            cut = model(input_ids=ids, use_cache=False).logits
        with only_wanted(torch.arange(9), 10):
            model(input_ids=ids, use_cache=False)
        # A forward of other tokens, within the block of these.
        with only_wanted(index, 10):
            model(input_ids=ids[:, :5], use_cache=False)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(cut[0, index], whole[0, index], atol=1e-5, rtol=0)
    assert cut.isfinite().all()
    assert fed == [10, 10, 10, 2, 10, 10, 5, 5]


def _run(model: Any) -> Any:
    return lambda: model(input_ids=torch.arange(8)[None], use_cache=False)


def _hooked(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if module._forward_pre_hooks]


def _last_layer_name(names: Sequence[str]) -> str:
    return max((name for name in names if name.endswith(".1")), key=len)
