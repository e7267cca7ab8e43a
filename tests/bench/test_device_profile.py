"""Time by phase, and the share of it in which a device has nothing to do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.device_profile import OUTSIDE, idle_shares, phase_rows, phases, traced
from bench.fixtures import small_run
from pipeline.base.cost import ModelShape
from pipeline.base.records import Cost

pytestmark = pytest.mark.unit

SHAPE = ModelShape(parameters=100, layers=1, heads=1, head_size=1, hidden=1, vocabulary=10)


def event(category: str, start: float, end: float, name: str = "k") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start}


def test_idle_time_by_hand() -> None:
    """Decoding from 0 to 10 and 20 to 30: kernels run for 5 and 8 of each 10. Between them, for 2 of 10.
    They overlap in 3, and the last ends at 35."""
    events = [
        event("user_annotation", 0, 10, "phase: decode"),
        event("user_annotation", 20, 30, "phase: decode"),
        event("user_annotation", 21, 22, "something else"),
        event("kernel", 0, 4),
        event("kernel", 1, 5),
        event("gpu_memcpy", 12, 14),
        event("gpu_memset", 20, 25),
        event("kernel", 25, 28),
        event("kernel", 33, 35),
        event("cpu_op", 0, 35),
        event("gpu_user_annotation", 0, 35, "phase: decode"),
        {"ph": "i", "name": "no duration", "ts": 3},
    ]
    shares = idle_shares(events)
    assert shares.keys() == {"decode", OUTSIDE, "all"}
    assert shares["decode"] == pytest.approx(1 - 13 / 20)
    assert shares[OUTSIDE] == pytest.approx(1 - 4 / 15)
    assert shares["all"] == pytest.approx(1 - 17 / 35)


def test_without_kernels_nothing_is_said_of_gaps() -> None:
    assert idle_shares([event("user_annotation", 0, 10, "phase: decode"), event("cpu_op", 0, 5)]) == {}


def test_rates_of_phases_by_hand() -> None:
    """1,000 tokens in 2 seconds, at 200 FLOP a token; scoring is the sum of its phases."""
    usage = {"decode": Cost(tokens=900, padding=100), "plus": Cost(tokens=300), "empty": Cost(tokens=100)}
    rows = phase_rows({"decode": 2.0, "plus": 3.0, "empty": 1.0}, usage, SHAPE, rate=1e6)
    assert rows["decode"] == {"seconds": 2.0, "tokens_per_s": 500.0, "share_of_matrix_rate": 0.1}
    assert rows["scoring"] == {"seconds": 4.0, "tokens_per_s": 100.0, "share_of_matrix_rate": 0.02}


def test_phases_are_those_of_the_engine(tmp_path: Path) -> None:
    """They take most of the time that annotating takes, in the model's thread too, and change nothing."""
    annotator = small_run.local_annotator(small_run.write_prompts(tmp_path))
    expected = annotator.annotate(small_run.texts(4))
    began = time.perf_counter()
    with phases(torch.device("cpu")) as seconds:
        found = annotator.annotate(small_run.texts(4))
    assert set(seconds) == {"positions", "decode", "empty", "plus", "call"}
    assert 0 < sum(seconds.values()) < time.perf_counter() - began
    assert [one.calls for one in found] == [one.calls for one in expected]
    with phases(torch.device("cpu")) as seconds:
        pass
    assert not seconds


def test_a_trace_holds_the_phases_of_the_thread_that_has_the_model(tmp_path: Path) -> None:
    annotator = small_run.local_annotator(small_run.write_prompts(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        annotate = lambda: pool.submit(annotator.annotate, small_run.texts(2)).result()  # noqa: E731
        table, events = traced(annotate, torch.device("cpu"))
    names = {one["name"] for one in events if one.get("cat") == "user_annotation"}
    assert {"phase: positions", "phase: decode", "phase: plus"} <= names
    assert "aten::" in table
