"""Fused layers on a GPU: the same modules are fused as on a CPU, and the logits stay the same."""

from __future__ import annotations

import pytest
import torch

from bench.fixtures.small_models import ARCHITECTURES, causal_lm
from tools_service.base.fused_layers import fuse_layers, unfuse_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_give_the_logits_of_plain_ones(architecture: str, dtype: torch.dtype) -> None:
    model = causal_lm(architecture, 300).to("cuda", dtype)
    ids = torch.arange(80, device="cuda").view(2, 40)
    with torch.inference_mode():
        plain = model(input_ids=ids).logits.float()
        assert fuse_layers(model) > 0
        fused = model(input_ids=ids).logits.float()
        unfuse_layers(model)
        assert torch.equal(model(input_ids=ids).logits.float(), plain)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance * float(plain.abs().max()))
