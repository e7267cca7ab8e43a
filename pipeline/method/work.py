"""What steps 2 and 4 ran for a text, beside the lower bound of the exact method.

In: the prompt and the draws of a text, or the sequences that were scored for it. Out: one
`PhaseWork` per tool and phase (base/cost.py derives the lower bounds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.base.cost import (
    PromptLayout,
    lower_bound_decode,
    lower_bound_positions,
    lower_bound_scoring,
)
from pipeline.base.records import Cost, Phase, PhaseWork
from pipeline.engine.usage import Usage

# The order in which shared beginnings are attributed.
_SCORING_PHASES: tuple[Phase, ...] = ("empty", "plus", "call")


def sampling_work(
    tool: str,
    layout: PromptLayout,
    draws: Mapping[int, Sequence[Sequence[int]]],
    usage: Usage,
    names: Mapping[int, Sequence[Sequence[int]]],
) -> tuple[PhaseWork, PhaseWork]:
    """The phases positions and decode of a text, given its draws [tokens] by position, and the
    beginnings of the tool's name that ran there."""
    return (
        PhaseWork(
            tool, "positions", lower_bound_positions(layout), usage["positions"]
        ),
        PhaseWork(
            tool,
            "decode",
            lower_bound_decode(layout, draws, names),
            usage["decode"],
        ),
    )


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """A sequence that was run for the losses of a text."""

    # None for L_i(empty), which all tools of the text share.
    tool: str | None
    phase: Phase
    ids: list[int]
    targets: int  # number of log-probabilities taken from it
    cost: Cost


def scoring_work(sequences: Sequence[ScoredSequence]) -> tuple[PhaseWork, ...]:
    """The phases empty, plus and call of a text, by tool.

    The lower bound counts a beginning that several sequences share once: under the earliest
    phase, then the earliest sequence.
    """
    ordered = sorted(sequences, key=lambda s: _SCORING_PHASES.index(s.phase))
    bounds = lower_bound_scoring(
        [sequence.ids for sequence in ordered],
        [sequence.targets for sequence in ordered],
    )
    sums: dict[tuple[str | None, Phase], tuple[Cost, Cost]] = {}
    for sequence, bound in zip(ordered, bounds, strict=True):
        key = sequence.tool, sequence.phase
        bound_before, run_before = sums.get(key, (Cost(), Cost()))
        sums[key] = bound_before + bound, run_before + sequence.cost
    return tuple(PhaseWork(*key, *costs) for key, costs in sums.items())
