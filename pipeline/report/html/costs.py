"""The model's work for an annotation, by tool and phase, beside the lower bound. In: a manifest's counts."""

from __future__ import annotations

from pipeline.base.cost import ModelShape
from pipeline.report.html.data import PhaseCost
from pipeline.storage.counts import Counts


def phase_costs(counts: Counts, shape: ModelShape | None) -> tuple[PhaseCost, ...]:
    """One for each tool and phase; FLOPs only with the sizes of the model."""
    return tuple(
        PhaseCost(
            tool=work.tool,
            phase=work.phase,
            tokens=work.run.tokens,
            padding=work.run.padding,
            lower_bound_tokens=work.lower_bound.tokens,
            flops=None if shape is None else shape.flops(work.run),
            lower_bound_flops=None if shape is None else shape.flops(work.lower_bound),
        )
        for work in counts.work
    )


def flops_by_tool(counts: Counts, shape: ModelShape | None) -> dict[str | None, float]:
    """FLOPs of the work done; None is the key of what all tools share. Empty without the model's sizes."""
    flops: dict[str | None, float] = {}
    if shape is not None:
        for work in counts.work:
            flops[work.tool] = flops.get(work.tool, 0) + shape.flops(work.run)
    return flops
