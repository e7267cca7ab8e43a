"""One outcome for all processes of a machine: kept whole, by the first process, in the user's cache."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tools_service.base import linear_choice
from tools_service.base.files import CACHE_VARIABLE, cache_folder
from tools_service.base.linear_choice import (
    measure_speedup,
    memory_for_copies,
    packed_is_faster,
)
from tools_service.base.packed_linear import _ways

pytestmark = pytest.mark.unit


def layers(width: int = 8) -> list[nn.Linear]:
    return [nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 2 * width)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def found(monkeypatch: pytest.MonkeyPatch, *speedups: float) -> list[float]:
    """What the measurements find, one after another; the list holds those that are left."""
    left = list(speedups)
    monkeypatch.setattr(linear_choice, "measure_speedup", lambda *_: left.pop(0))
    return left


def test_the_first_outcome_holds_for_all_that_follow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = found(monkeypatch, 1.2, 0.8)
    assert packed_is_faster(layers(), _ways)
    assert packed_is_faster(layers(), _ways)
    assert left == [0.8]
    [path] = folder.iterdir()
    kept = json.loads(path.read_text())
    assert (kept["packed"], kept["speedup"], kept["layers"]) == (True, 1.2, [[8, 16, 2], [16, 8, 1]])


def test_other_shapes_types_and_threads_are_measured_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = found(monkeypatch, 1.2, 0.8, 1.1, 1.3)
    assert packed_is_faster(layers(), _ways)
    assert not packed_is_faster(layers(16), _ways)
    assert not packed_is_faster([layer.bfloat16() for layer in layers()], _ways)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    assert packed_is_faster(layers(), _ways)
    assert not left
    assert len(list(folder.iterdir())) == 4


def test_a_process_that_measured_at_the_same_time_takes_the_first_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slower(*_: object) -> float:
        found(monkeypatch, 2.0)
        assert packed_is_faster(layers(), _ways)  # another process, in the meantime
        return 0.5

    monkeypatch.setattr(linear_choice, "measure_speedup", slower)
    assert packed_is_faster(layers(), _ways)


def choose(barrier: object, seed: int, outcomes: multiprocessing.SimpleQueue[bool]) -> None:
    linear_choice.measure_speedup = lambda *_: float(seed % 2) + 0.5  # type: ignore[assignment]
    barrier.wait()  # type: ignore[attr-defined]
    outcomes.put(packed_is_faster(layers(), _ways))


def test_processes_that_start_together_agree(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=choose, args=(barrier, seed, outcomes)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len({outcomes.get() for _ in processes}) == 1
    assert len(list(folder.iterdir())) == 1, "parts are left behind"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"packed": 1}'])
def test_a_damaged_file_is_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    found(monkeypatch, 1.2, 0.8)
    assert packed_is_faster(layers(), _ways)
    [path] = folder.iterdir()
    path.write_text(damage)
    assert not packed_is_faster(layers(), _ways)
    assert json.loads(path.read_text())["packed"] is False


@pytest.mark.parametrize(("speedup", "packed"), [(1.2, False), (1.4, True)])
def test_without_a_folder_only_a_clear_speedup_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    speedup: float,
    packed: bool,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    found(monkeypatch, speedup)
    with caplog.at_level(logging.WARNING):
        assert packed_is_faster(layers(), _ways) == packed
    assert "name another folder in TOOLFORMER_CACHE" in caplog.text


def test_the_folder_follows_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "toolformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert cache_folder() == Path("/somebody/.cache/toolformer")


def test_the_measurement_weighs_each_shape_by_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(linear_choice.time, name, lambda: clock[0])
    seen: list[tuple[int, int]] = []

    def ways(layer: nn.Linear) -> Sequence[object]:
        def run(cost: float, x: torch.Tensor) -> None:
            seen.append(tuple(x.shape))
            clock[0] += cost

        # The first shape, of two layers: 3 against 1. The second: 1 against 1.
        plain = 3.0 if layer.in_features == 8 else 1.0
        return (lambda x: run(plain, x)), (lambda x: run(1.0, x))

    assert measure_speedup(layers(), ways) == pytest.approx((2 * 3 + 1) / 3)  # type: ignore[arg-type]
    assert set(seen) == {(64, 8), (512, 8), (64, 16), (512, 16)}


def test_copies_may_take_a_part_of_the_share_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4_096, "SC_PHYS_PAGES": 1_000}
    monkeypatch.setattr(linear_choice.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(linear_choice, "available_cpus", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert memory_for_copies() == 4_096 * 1_000 / 2 / 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert memory_for_copies() == 4_096 * 1_000 / 4
