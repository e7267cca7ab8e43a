"""Linear layers through oneDNN equal torch's own, and are used only where that is so."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from tools_service.base import packed_linear
from tools_service.base.errors import ConfigurationError
from tools_service.base.packed_linear import VARIABLE, onednn_takes, pack_linear_layers, unpack_linear_layers

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"),
]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "packed")


def mlp(width: int = 48) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 3 * width), nn.SiLU(), nn.Linear(3 * width, width, bias=False))


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (3, 5, 48), (1, 300, 48), (0, 48), (48,)])
def test_packed_layers_equal_plain_ones_and_keep_their_weights(shape: tuple[int, ...]) -> None:
    plain, model = mlp(), mlp()
    assert pack_linear_layers(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, result = plain(x), model(x)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])


@pytest.mark.usefixtures("packed")
def test_inputs_that_are_not_contiguous_are_right() -> None:
    plain, model = mlp(), mlp()
    assert pack_linear_layers(model)
    x = torch.randn(48, 9, generator=torch.Generator().manual_seed(1)).T
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("packed")
def test_gradients_are_those_of_plain_layers() -> None:
    plain, model = mlp(), mlp()
    assert pack_linear_layers(model)
    for each in (plain, model):
        each(torch.ones(2, 48)).sum().backward()
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad)


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("change", ["in place", "loaded", "replaced", "another type"])
def test_a_weight_that_changes_is_used(change: str) -> None:
    model = mlp()
    assert pack_linear_layers(model)
    dtype = torch.float32
    with torch.no_grad():
        if change == "in place":
            model[0].weight.mul_(2)
        elif change == "loaded":
            model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})
        elif change == "replaced":
            model[0].weight = nn.Parameter(2 * model[0].weight)
        else:
            dtype = torch.bfloat16
            model.to(dtype)
    plain = mlp().to(dtype)
    plain.load_state_dict(model.state_dict())
    x = torch.ones(3, 48, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("packed")
def test_a_copy_runs_with_its_own_weights() -> None:
    model = mlp()
    assert pack_linear_layers(model)
    copied = deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(2)
    plain = mlp()
    plain.load_state_dict(copied.state_dict())
    x = torch.ones(2, 48)
    with torch.inference_mode():
        torch.testing.assert_close(copied(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("packed")
def test_a_bias_that_is_replaced_is_used() -> None:
    model = mlp()
    assert pack_linear_layers(model)
    x = torch.ones(2, 48)
    with torch.inference_mode():
        before = model[0](x)
        model[0].bias = nn.Parameter(model[0].bias + 1)
        torch.testing.assert_close(model[0](x), before + 1)


@pytest.mark.parametrize("faster", [False, True])
def test_layers_are_packed_where_that_is_faster(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(packed_linear, "packed_is_faster", lambda *_: faster)
    assert pack_linear_layers(mlp()) == faster


@pytest.mark.usefixtures("packed")
def test_unpacked_layers_are_as_before() -> None:
    model = mlp()
    assert pack_linear_layers(model)
    unpack_linear_layers(model)
    assert all("forward" not in vars(layer) for layer in model)


@pytest.mark.usefixtures("packed")
def test_bfloat16_layers_differ_by_rounding_only() -> None:
    plain, model = mlp().bfloat16(), mlp().bfloat16()
    if not onednn_takes(torch.bfloat16):
        assert not pack_linear_layers(model)
        pytest.skip("oneDNN has no bfloat16 on this processor")
    assert pack_linear_layers(model)
    x = torch.randn(300, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("packed")
def test_layers_that_would_round_more_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = packed_linear.packed_linear
    monkeypatch.setattr(
        packed_linear, "packed_linear", lambda *arguments: exact(*arguments).bfloat16().float()
    )
    model = mlp()
    assert not pack_linear_layers(model)
    assert "forward" not in vars(model[0])


@pytest.mark.usefixtures("packed")
def test_a_torch_without_the_operator_runs_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(packed_linear, "packed_linear", missing)
    with caplog.at_level(logging.WARNING):
        assert not pack_linear_layers(mlp())
    assert "linear layers stay unpacked" in caplog.text


@pytest.mark.usefixtures("packed")
def test_other_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert not pack_linear_layers(mlp().half())
    assert not pack_linear_layers(nn.Sequential(Doubled(4, 4), nn.LayerNorm(4)))
    assert not pack_linear_layers(nn.Linear(4, 4, device="meta"))
    monkeypatch.setattr(packed_linear, "memory_for_copies", lambda: 1_000)
    assert not pack_linear_layers(mlp())


def test_the_variable_switches_packing_off_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "packed_is_faster", lambda *_: True)
    monkeypatch.setenv(VARIABLE, "plain")
    assert not pack_linear_layers(mlp())
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ConfigurationError, match="TOOLFORMER_LINEAR = 'fast': write auto, plain or packed"):
        pack_linear_layers(mlp())


@pytest.mark.usefixtures("packed")
def test_the_demo_annotator_has_the_same_logits() -> None:
    from transformers import AutoModelForCausalLM

    from tools_service.base.checkpoints import load_model

    folder = str(Path("demo/models/annotator"))
    plain, model = (load_model(AutoModelForCausalLM, folder, "model", dtype="float32") for _ in range(2))
    assert pack_linear_layers(model)
    ids = torch.arange(5, 200).view(3, -1)
    with torch.inference_mode():
        expected = plain(ids).logits
        largest = float(expected.abs().max())  # 22: the rounding of the sums is relative to it
        torch.testing.assert_close(model(ids).logits, expected, rtol=0.0, atol=1e-5 * largest)
