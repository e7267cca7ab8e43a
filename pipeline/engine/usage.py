"""What was run through the model, by phase: the measured side of the cost model.

In: the costs of forwards. Out: their sums, for the model as a whole (`Usage`) and for each
text of a batch (`BatchUsage`). base/cost.py has the lower bound that these are held against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from pipeline.base.records import Cost, Phase


class Usage(dict[Phase, Cost]):
    """Summed costs by phase; a phase that has not run costs nothing."""

    def __missing__(self, phase: Phase) -> Cost:
        return Cost()

    def record(self, phase: Phase, cost: Cost) -> None:
        """Add `cost` to the phase."""
        self[phase] = self[phase] + cost


class BatchUsage:
    """The usage of each text of a batch, while texts move between the rows of its tensors."""

    def __init__(self, usage_by_text: Sequence[Usage]) -> None:
        self._usage_by_text = list(usage_by_text)

    def extend(self, other: BatchUsage) -> None:
        """Append the texts of another batch."""
        self._usage_by_text += other._usage_by_text

    def record_rows(
        self,
        phase: Phase,
        cost_by_row: Sequence[Cost],
        row_of_text: ndarray,  # -1 for a text in no row
    ) -> None:
        """Charge every text with the cost of its row."""
        rows = row_of_text.tolist()
        for usage, row in zip(self._usage_by_text, rows, strict=True):
            if row >= 0:
                usage.record(phase, cost_by_row[row])

    def record_logits(self, phase: Phase, text_of_logit: ndarray) -> None:
        """Charge every text with its rows of logits; `text_of_logit` [M] names the texts."""
        counts = np.bincount(text_of_logit).tolist()
        for text, count in enumerate(counts):
            if count:
                self._usage_by_text[text].record(phase, Cost(logits=count))
