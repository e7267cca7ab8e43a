"""What steps 2 and 4 ran for a text, beside the lower bound of the exact method.

In: the prompt and the draws of a text, or the sequences that were scored for it. Out: one
`PhaseWork` per tool and phase (base/cost.py derives the lower bounds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.base.cost import (
    PromptLayout,
    lower_bound_decode,
    lower_bound_positions,
    lower_bound_scoring,
)
from pipeline.base.records import Cost, Phase, PhaseWork
from pipeline.engine.usage import Usage
from tools_service.tools.contract import ToolName

# The order in which the losses of a text are computed.
_SCORING_PHASES: tuple[Phase, ...] = ("empty", "plus", "call")


def sampling_work(
    tool: ToolName,
    layout: PromptLayout,
    draws: Mapping[int, Sequence[Sequence[int]]],
    usage: Usage,
) -> tuple[PhaseWork, PhaseWork]:
    """The phases positions and decode of a text, given its draws [tokens] by position."""
    return (
        PhaseWork(
            tool, "positions", lower_bound_positions(layout), usage["positions"]
        ),
        PhaseWork(
            tool, "decode", lower_bound_decode(layout, draws), usage["decode"]
        ),
    )


@dataclass(frozen=True, slots=True)
class _ScoredSequence:
    tool: (
        ToolName | None
    )  # None for L_i(empty), which all tools of the text share
    phase: Phase
    ids: list[int]
    targets: int  # number of log-probabilities taken from it
    cost: Cost


@dataclass(slots=True)
class ScoringWork:
    """The sequences that were scored for one text."""

    _sequences: list[_ScoredSequence] = field(default_factory=list)

    def record(
        self,
        tool: ToolName | None,
        phase: Phase,
        ids: np.ndarray,
        targets: int,
        cost: Cost,
    ) -> None:
        """Note that `ids` was run for `targets` log-probabilities, and what that cost."""
        sequence = _ScoredSequence(tool, phase, ids.tolist(), targets, cost)
        self._sequences.append(sequence)

    def by_phase(self) -> tuple[PhaseWork, ...]:
        """The work of each tool and phase.

        The lower bound counts a beginning that several sequences share once: under the
        earliest phase, then the earliest sequence.
        """
        ordered = sorted(
            self._sequences, key=lambda s: _SCORING_PHASES.index(s.phase)
        )
        bounds = lower_bound_scoring(
            [sequence.ids for sequence in ordered],
            [sequence.targets for sequence in ordered],
        )
        sums: dict[tuple[ToolName | None, Phase], tuple[Cost, Cost]] = {}
        for sequence, bound in zip(ordered, bounds, strict=True):
            key = sequence.tool, sequence.phase
            bound_before, run_before = sums.get(key, (Cost(), Cost()))
            sums[key] = bound_before + bound, run_before + sequence.cost
        return tuple(PhaseWork(*key, *costs) for key, costs in sums.items())
