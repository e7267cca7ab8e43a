"""What a plan assumes about model and tools: statistics per text, engine overhead, speed.

`DEMO` has the values of a finished run of the recipe `demo`; from_run.py measures those of any other
finished run. Both depend on the model and on the corpus, so they are the least certain part of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.records import Phase
from tools_service.base.settings import Frozen, NotNegative, Probability


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """Averages over the texts that were selected for one tool. Lengths are in tokens."""

    positions: Probability  # chosen positions per text, as a share of k
    draw: NotNegative  # tokens run per draw; equal beginnings at one position count once
    candidates: NotNegative  # calls sent to the tool, per draw
    scored: NotNegative  # distinct pairs (c, r) of a text with losses, per draw
    plus: NotNegative  # length of e(c, r) without BOS
    call: NotNegative  # length of e(c) without BOS
    last_position: Probability  # where the last call of a (c, r) stands, as a share of the text
    targets: NotNegative  # tokens whose log-probability a (c, r) needs
    needs_call: Probability  # share of the (c, r) that need L_i(e(c))
    texts_kept: Probability  # share of the texts with a call at tau_f or above


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the engine runs in one phase, relative to the estimated lower bound."""

    tokens: NotNegative = 1.0
    padding: NotNegative = 0.0  # per token that is run
    attention_pairs: NotNegative = 1.0  # masked pairs included


class Assumptions(Frozen):
    """All inputs of a plan that do not come from the corpus, the prompts or the model configuration."""

    source: str
    tools: dict[str, ToolStatistics]
    overheads: dict[Phase, Overhead]
    bytes_per_character: NotNegative  # on disk: the column of the texts
    bytes_per_text: NotNegative  # on disk: all other columns
    start_s: NotNegative  # seconds to start Ray, the tools and the models
    throughput: float | None = None  # FLOP/s of one actor after the start, beside the run's tools


DEMO = Assumptions(
    source="the demo's pages and its annotator",
    tools={
        # positions, draw, candidates, scored, plus, call, last_position, targets, needs_call, texts_kept
        "QA": ToolStatistics(0.131, 4.06, 0.479, 0.464, 15.7, 11.7, 0.54, 4.7, 0.74, 0.34),
        "WikiSearch": ToolStatistics(0.131, 1.22, 0.239, 0.165, 46.0, 7.2, 0.58, 6.0, 0.73, 0.33),
        "Calculator": ToolStatistics(1.0, 1.79, 0.344, 0.193, 10.8, 7.2, 0.57, 7.0, 0.29, 0.99),
        "Calendar": ToolStatistics(0.056, 0.2, 0.2, 0.183, 14.0, 3.0, 0.49, 5.5, 0.9, 0.23),
        "MT": ToolStatistics(1.0, 6.81, 0.312, 0.161, 34.4, 18.1, 0.58, 6.6, 0.4, 1.0),
    },
    overheads={
        # tokens, padding, attention_pairs
        "positions": Overhead(1.0, 0.012, 1.44),
        "decode": Overhead(1.0, 0.0, 3.06),
        "empty": Overhead(1.25, 0.001, 2.42),
        "plus": Overhead(1.06, 0.021, 1.32),
        "call": Overhead(1.01, 0.004, 1.34),
    },
    bytes_per_character=0.6,
    bytes_per_text=870.0,
    start_s=50.0,
)
"""A whole run of the recipe `demo`; `python -m bench.plan` measures these values again."""

CALLS_PER_S: dict[str, float] = {
    "QA": 100.0,
    "WikiSearch": 1_000.0,
    "Calculator": 10_000.0,
    "Calendar": 10_000.0,
    "MT": 200.0,
}
"""Calls that one replica answers, by `python -m bench.tools` on one thread of two cores of an AMD EPYC, with
the demo's small models, in lists of 64. Elsewhere this is only the order of magnitude: use --calls-per-s."""
