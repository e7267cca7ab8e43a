"""Run the systems of bench.annotate in several processes at once, like annotating actors.

In: the options of bench.annotate. Out: the `SystemRuns` of all processes together. Each process is
bound to an equal share of the cores, runs as many threads, and annotates every Nth text. All start
at the same moment. The time is the slowest process's; CPU time and memory are sums.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from threading import BrokenBarrierError
from typing import Any, TypeVar

import torch

from bench.side_by_side import OpponentRuns, SystemRuns, run_systems
from bench.systems import SystemRun
from bench.workload import Workload
from pipeline.base.records import Cost, Phase

START_TIMEOUT_S = 900.0
T = TypeVar("T")


def run_in_processes(processes: int, name: str, tool: str, args: argparse.Namespace) -> SystemRuns:
    """The runs that `args` ask for. SystemExit if there are fewer cores than processes."""
    cores = sorted(os.sched_getaffinity(0))
    if processes > len(cores):
        raise SystemExit(f"--processes {processes}: this machine gives us {len(cores)} cores")
    context = get_context("spawn")
    barrier = context.Barrier(processes, timeout=START_TIMEOUT_S)
    with ProcessPoolExecutor(processes, context, _set_shared, (barrier, cores)) as pool:
        jobs = [pool.submit(_run, number, processes, name, tool, args) for number in range(processes)]
        runs = _collect([job.result for job in jobs])
    plain = [run.plain for run in runs if run.plain]
    rates: Counter[str] = Counter()
    for run in runs:
        rates.update(run.matrix_rates)
    return SystemRuns(
        dict(rates),
        _merge_rounds([run.engine for run in runs]),
        merge_runs(plain) if plain else None,
        {key: _merge_opponents([run.opponents[key] for run in runs]) for key in runs[0].opponents},
    )


def _merge_rounds(parts: Sequence[Sequence[SystemRun]]) -> list[SystemRun]:
    return [merge_runs(of_round) for of_round in zip(*parts, strict=True)]


def _merge_opponents(parts: Sequence[OpponentRuns]) -> OpponentRuns:
    runs, scored = _merge_rounds([part.runs for part in parts]), interleave([part.scored for part in parts])
    return OpponentRuns(runs, scored, {"processes": [part.setup for part in parts]})


def _collect(waits: Sequence[Callable[[], T]]) -> list[T]:
    """The value of each call. If several raise, the error that caused the others is raised."""
    values, errors = [], []
    for wait in waits:
        try:
            values.append(wait())
        except BaseException as error:
            errors.append(error)
    if errors:
        raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
    return values


_barrier: Any = None
_cores: list[int] = []


def _set_shared(barrier: Any, cores: list[int]) -> None:
    """Set what a worker process keeps for its job."""
    global _barrier, _cores
    _barrier, _cores = barrier, cores


def _run(number: int, of: int, name: str, tool: str, args: argparse.Namespace) -> SystemRuns:
    """The job of process `number` of `of`."""
    own_cores = _cores[number * len(_cores) // of : (number + 1) * len(_cores) // of]
    os.sched_setaffinity(0, own_cores)
    torch.set_num_threads(len(own_cores))
    try:
        whole = Workload.create(name, tool, args)
        part = replace(whole, texts=whole.texts[number::of])
        return run_systems(part, whole.texts[: args.plain_texts][number::of], args, _barrier.wait)
    except BaseException:
        _barrier.abort()  # so that no other process waits for this one
        raise


def merge_runs(runs: Sequence[SystemRun]) -> SystemRun:
    """One run out of runs that began together, each over every Nth text."""
    usage: dict[Phase, Cost] = {}
    for run in runs:
        for phase, cost in run.usage.items():
            usage[phase] = usage.get(phase, Cost()) + cost
    timing = {name: sum(run.timing[name] for run in runs) for name in ("cpu_s", "peak_mib")}
    return SystemRun(
        f"{runs[0].name}, {len(runs)} processes",
        timing | {"wall_s": max(run.timing["wall_s"] for run in runs)},
        sum(run.candidates for run in runs),
        interleave([run.calls for run in runs]),
        usage,
        sum(run.forwards for run in runs),
        {"processes": [run.details for run in runs]} if any(run.details for run in runs) else {},
    )


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """One element of each part in turn: undoes the distribution of every Nth element."""
    return [parts[n % len(parts)][n // len(parts)] for n in range(sum(map(len, parts)))]
