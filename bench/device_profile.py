"""Where the time of annotating goes: seconds by phase, the most expensive kernels, gaps of the device.

In: the engine's annotator and texts. Out: a table, printed. Each phase's work is bounded by waiting for
the device, so phases add up to a little more than a run without. Kernels and gaps come from
torch.profiler's trace. On a CPU there are no kernels: operators are listed, and no gaps.

Phases are spans of the program: prefilling the positions, drawing, and scoring under its three names.
What runs between them (executing calls, bookkeeping) is "outside"; the device is idle then.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.base.cost import ModelShape
from pipeline.base.records import Cost
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.sampler import Sampler
from pipeline.method import filtering

OUTSIDE = "outside"
_PREFIX = "phase: "
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_TOP = 20
Span = tuple[float, float]
"""A beginning and an end, on one clock."""


@contextmanager
def phases(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds by phase of what is annotated in the block. Each phase is also a span of a trace."""
    seconds: dict[str, float] = defaultdict(float)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def timed(function: Callable[..., Any], phase: str | None) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            name = phase or arguments[-1]  # token_logprobs is told its phase last
            wait()
            began = time.perf_counter()
            with record_function(_PREFIX + name):
                result = function(*arguments, **options)
                wait()
            seconds[name] += time.perf_counter() - began
            return result

        return call

    with ExitStack() as stack:
        for owner, name, phase in (
            (PrefilledBatch, "__init__", "positions"),
            (PrefilledBatch, "api_probabilities", "positions"),
            (Sampler, "add", "decode"),
            (Sampler, "step", "decode"),
            (filtering, "token_logprobs", None),
        ):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), phase)))
        yield seconds


def phase_rows(
    seconds: Mapping[str, float], usage: Mapping[Any, Cost], shape: ModelShape, rate: float
) -> dict[str, dict[str, float]]:
    """Tokens per second of each phase, and its FLOP/s as a share of `rate`; scoring as a whole, too."""
    work = {phase: (seconds[phase], usage[phase]) for phase in seconds if phase in usage}
    scoring = [work[phase] for phase in ("empty", "plus", "call") if phase in work]
    if scoring:
        duration, costs = zip(*scoring, strict=True)
        work["scoring"] = sum(duration), sum(costs, Cost())
    return {
        phase: {
            "seconds": round(duration, 3),
            "tokens_per_s": round((cost.tokens + cost.padding) / duration, 1),
            "share_of_matrix_rate": round(shape.flops(cost) / duration / rate, 4),
        }
        for phase, (duration, cost) in work.items()
    }


def traced(annotate: Callable[[], Any], device: torch.device) -> tuple[str, list[dict[str, Any]]]:
    """Profile `annotate`: a table of the most expensive operators or kernels, and the trace's events."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # The model runs in a thread of its own.
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with phases(device), profile(activities=activities, experimental_config=every_thread) as profiler:
        annotate()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=_TOP, max_name_column_width=60)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return table, json.loads(file.read_text(encoding="utf-8"))["traceEvents"]


def idle_shares(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each phase's time, and of all time ("all"), the share in which nothing runs on the device.

    Empty without kernels, as on a CPU.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    kernels = [_span(event) for event in complete if event.get("cat") in _ON_DEVICE]
    if not kernels:
        return {}
    busy = _union(kernels)
    spans: dict[str, list[Span]] = defaultdict(list)
    for event in complete:
        if event.get("cat") == "user_annotation" and event["name"].startswith(_PREFIX):
            spans[event["name"].removeprefix(_PREFIX)].append(_span(event))
    measured = _union([*kernels, *(span for own in spans.values() for span in own)])
    whole = [(measured[0][0], measured[-1][1])]
    inside = _union([span for own in spans.values() for span in own])
    spans[OUTSIDE] = _gaps(whole[0], inside)
    spans["all"] = whole
    return {
        name: 1 - _length(_common(_union(own), busy)) / _length(own)
        for name, own in spans.items()
        if _length(own)
    }


def _span(event: Mapping[str, Any]) -> Span:
    start = float(event["ts"])
    return start, start + float(event["dur"])


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def _union(spans: Iterable[Span]) -> list[Span]:
    """Disjoint spans, ascending, that cover the same time."""
    united: list[Span] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united


def _common(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """What two lists of disjoint, ascending spans both cover."""
    common, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            common.append((start, end))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return common


def _gaps(whole: Span, inside: Sequence[Span]) -> list[Span]:
    """The parts of `whole` before, between and after disjoint, ascending spans."""
    edges = [whole[0], *(edge for span in inside for edge in span), whole[1]]
    return [(start, end) for start, end in list(pairwise(edges))[::2] if start < end]
