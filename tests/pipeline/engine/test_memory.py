"""What a forward may have: the line through two rehearsals, and what a rehearsal leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.fixtures.small_models import causal_lm, language_model, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.engine import loading, memory
from pipeline.engine.errors import ModelError
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.memory import (
    fitting_batch_tokens,
    limit_to_share,
    profile_max_batch_tokens,
    run_profile,
)
from pipeline.engine.tree_attention import TreeBatch

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


class FakeGpu:
    """A GPU of 16 GiB on which torch holds 2 GiB of weights in this process, and others hold `others`."""

    TOTAL, WEIGHTS, PER_TOKEN = 16 * 2**30, 2 * 2**30, 2**20

    def __init__(self, others: int = 0) -> None:
        self.others, self.share, self.peak = others, 1.0, self.WEIGHTS

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
        def nothing(*_: Any) -> None: ...

        fakes: dict[str, Callable[..., Any]] = {
            "current_device": lambda: 0,
            "synchronize": nothing,
            "empty_cache": nothing,
            "reset_peak_memory_stats": nothing,
            "memory_allocated": lambda _: self.WEIGHTS,
            "memory_reserved": lambda _: self.WEIGHTS,
            "max_memory_allocated": lambda _: self.peak,
            "mem_get_info": lambda _: (self.TOTAL - self.WEIGHTS - self.others, self.TOTAL),
            "get_per_process_memory_fraction": lambda _: self.share,
            "set_per_process_memory_fraction": self.set_share,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return self

    def set_share(self, share: float, device: int) -> None:
        assert device == 0  # torch takes no device without a number
        self.share = share


def profiled(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> int:
    """What fits when a token takes 1 MiB."""

    def run(_: Any, texts: int, __: int) -> int:
        gpu.peak = gpu.WEIGHTS + 1_000 * texts * gpu.PER_TOKEN
        return 1_000 * texts

    monkeypatch.setattr(memory, "run_profile", run)
    return profile_max_batch_tokens(language_model("llama", "bytes"))


def test_processes_that_share_a_gpu_each_count_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both load at once: to each, all but its own weights seem to be free."""
    gpu = FakeGpu().install(monkeypatch)
    limit_to_share(1.0)
    alone = profiled(gpu, monkeypatch)
    assert alone == int(0.85 * (16 - 2) * 1024)
    limit_to_share(0.5)
    half = profiled(gpu, monkeypatch)
    assert half == int(0.85 * (8 - 0.5 - 2) * 1024)  # 0.5 GiB is for the context
    # What both take, contexts included, fits the GPU.
    taken = 2 * (half * gpu.PER_TOKEN + gpu.WEIGHTS + 2**29)
    assert taken < gpu.TOTAL


def test_memory_that_others_hold_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(others=10 * 2**30).install(monkeypatch)
    limit_to_share(0.5)
    assert profiled(gpu, monkeypatch) == int(0.85 * 4 * 1024)


def test_a_share_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu().install(monkeypatch)
    with pytest.raises(ModelError, match=r"model\.gpus = 0\.03: .* 16\.0 GiB .*gpus_per_actor"):
        limit_to_share(0.03)


def test_loading_limits_the_process_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    monkeypatch.setattr(loading, "resolve_device", lambda *_: "cuda")
    with pytest.raises(ModelError, match="nowhere"):
        loading.load_causal_lm(ModelConfig(path="./nowhere", gpus=0.25))
    assert gpu.share == pytest.approx(0.25 - 1 / 32)


@pytest.mark.parametrize("draws", [25, 200])
def test_a_rehearsal_has_as_many_draws_as_a_text_may(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them alive at once, for as many steps as outgrow the cache's spare slots."""
    model = language_model("llama", "bytes")
    frontiers, capacities = [], []
    extend = TreeBatch.extend

    def watched(tree: TreeBatch, *arguments: Any, **options: Any) -> None:
        extend(tree, *arguments, **options)
        frontiers.append(tree.position_ids.shape)
        capacities.append(tree.cache.capacity)

    monkeypatch.setattr(TreeBatch, "extend", watched)
    run_profile(model, 1, draws)
    steps = [shape for shape in frontiers if shape[1] == draws]
    assert len(steps) == 5
    assert {rows for rows, _ in steps} == {2}
    assert capacities[-1] > capacities[-5]
