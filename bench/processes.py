"""The contestants in several processes at once, as the annotating actors of one machine share its cores.

In: what bench.annotate was asked. Out: one `Run` for all processes together. Each has an equal share of the
cores, to which it is bound, as many threads, and every Nth text. All begin at one moment; the time is
the slowest's, CPU time and memory are everyone's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from threading import BrokenBarrierError
from typing import Any, TypeVar

import torch

from bench.plain import Plain
from bench.systems import Run, run_engine, run_plain
from bench.vllm.job import Contest, contest
from bench.workload import Subject
from pipeline.base.records import Cost, Phase
from tools_service.tools.contract import ToolName

PATIENCE_S = 900.0
T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """What all processes did."""

    engine: Run
    plain: Run | None
    vllm: Contest | None


def in_processes(processes: int, name: str, tool: ToolName, args: argparse.Namespace) -> Together:
    """The runs that `args` ask for. SystemExit if there are fewer cores than processes."""
    cores = sorted(os.sched_getaffinity(0))
    if processes > len(cores):
        raise SystemExit(f"--processes {processes}: this machine gives us {len(cores)} cores")
    context = get_context("spawn")
    begin = context.Barrier(processes, timeout=PATIENCE_S)
    with ProcessPoolExecutor(processes, context, _share, (begin, cores, processes)) as pool:
        jobs = [pool.submit(_run, number, processes, name, tool, args) for number in range(processes)]
        parts = _results([job.result for job in jobs])
    plain = [part.plain for part in parts if part.plain]
    vllm = [part.vllm for part in parts if part.vllm]
    return Together(
        merged([part.engine for part in parts]),
        merged(plain) if plain else None,
        _merged_contests(vllm) if vllm else None,
    )


def _merged_contests(parts: Sequence[Contest]) -> Contest:
    scored = interleaved([one.scored for one in parts])
    return Contest(merged([one.run for one in parts]), scored, {"processes": [one.about for one in parts]})


def _results(ask: Sequence[Callable[[], T]]) -> list[T]:
    """What each gives; of several errors the one that the others are a consequence of."""
    found, errors = [], []
    for one in ask:
        try:
            found.append(one())
        except BaseException as error:
            errors.append(error)
    if errors:
        raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
    return found


_begin: Any = None
_cores: list[int] = []


def _share(begin: Any, cores: list[int], processes: int) -> None:
    """What a process keeps for its job."""
    global _begin, _cores
    _begin, _cores = begin, cores


def _run(number: int, of: int, name: str, tool: ToolName, args: argparse.Namespace) -> Together:
    """One process's part, beside the others'."""
    mine = _cores[number * len(_cores) // of : (number + 1) * len(_cores) // of]
    os.sched_setaffinity(0, mine)
    torch.set_num_threads(len(mine))
    try:
        whole = Subject.of(name, tool, args)
        part = replace(whole, texts=whole.texts[number::of])
        engine, _ = run_engine("engine", part.annotator(), part.model, part.texts, ready=_begin.wait)
        plain = vllm = None
        if args.plain_texts:
            texts = whole.texts[: args.plain_texts][number::of]
            plain = run_plain(Plain(part.model, part.tools, part.method), part.model, texts, _begin.wait)
        if args.against == "vllm":
            vllm = contest(args.vllm_python, part, engine.calls, _begin.wait)
        return Together(engine, plain, vllm)
    except BaseException:
        _begin.abort()  # nobody is to wait for this one
        raise


def merged(runs: Sequence[Run]) -> Run:
    """Runs that began together, each of every Nth text, as one."""
    usage: dict[Phase, Cost] = {}
    for run in runs:
        for phase, cost in run.usage.items():
            usage[phase] = usage.get(phase, Cost()) + cost
    took = {name: sum(run.took[name] for run in runs) for name in ("cpu_s", "peak_mib")}
    return Run(
        f"{runs[0].name}, {len(runs)} processes",
        took | {"wall_s": max(run.took["wall_s"] for run in runs)},
        sum(run.candidates for run in runs),
        interleaved([run.calls for run in runs]),
        usage,
        sum(run.forwards for run in runs),
    )


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """One element from each in turn, as they were dealt out."""
    return [parts[n % len(parts)][n // len(parts)] for n in range(sum(map(len, parts)))]
