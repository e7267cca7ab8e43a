"""The systems of bench.annotate on one workload, in turns.

In: a workload and the options of bench.annotate. Out: `SystemRuns`, with the runs of each system by
round. All systems are loaded and warmed up before the first round, so that the rounds follow each
other at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.engines import OPPONENTS
from bench.measuring import matrix_rates
from bench.opponents.opponent import start
from bench.plain import PlainAnnotator
from bench.systems import SystemRun, no_wait, run_engine, run_plain
from bench.workload import Workload
from pipeline.base.records import Annotation, Call, Text


@dataclass(frozen=True)
class OpponentRuns:
    """The runs of another inference engine, by round."""

    runs: list[SystemRun]
    scored: list[list[Call]]
    """The calls of our engine's first run of each text, as this engine scores them."""
    setup: dict[str, Any]
    """Versions, settings and variables of the engine."""


@dataclass(frozen=True)
class SystemRuns:
    """What one process measured, or all processes together."""

    matrix_rates: dict[str, float]
    """FLOP/s of a matrix product, by library."""
    engine: list[SystemRun]
    plain: SystemRun | None
    opponents: dict[str, OpponentRuns] = field(default_factory=dict)
    annotations: Sequence[Annotation] = ()
    """Of the engine's first run, in one process only."""


def run_systems(
    workload: Workload,
    plain_texts: Sequence[Text],
    args: argparse.Namespace,
    ready: Callable[[], Any] = no_wait,
) -> SystemRuns:
    """Run the systems that `args` ask for, each run when `ready` returns.

    `plain_texts` are those that the plain procedure annotates, once.
    """
    model, texts = workload.model, workload.texts
    with ExitStack() as stack:
        opponents = {
            key: stack.enter_context(start(OPPONENTS[key], f"--{key}-python", args.pythons[key], workload))
            for key in args.against
        }
        ready()
        rates = matrix_rates(model.device, model.model.dtype)
        engine, annotations = [], []
        runs: dict[str, list[SystemRun]] = {key: [] for key in opponents}
        for _ in range(args.rounds):
            run, annotated = run_engine("engine", workload.annotator(), model, texts, ready=ready)
            engine.append(run)
            annotations.append(annotated)
            for key, opponent in opponents.items():
                runs[key].append(opponent.run(ready))
        plain = None
        if args.plain_texts:
            procedure = PlainAnnotator(model, workload.tools, workload.method)
            plain = run_plain(procedure, model, plain_texts, ready)
        scored = {
            key: OpponentRuns(runs[key], opponent.score(engine[0].calls), opponent.setup)
            for key, opponent in opponents.items()
        }
    return SystemRuns(rates, engine, plain, scored, annotations[0])
