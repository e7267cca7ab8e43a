"""What a plan assumes about model and tools: statistics per text, engine overhead, speed.

`DEMO` has the values of a finished run of the recipe `demo`; from_run.py measures those of any other
finished run. Both depend on the model and on the corpus, so they are the least certain part of a plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.base.records import Phase
from tools_service.base.files import read_model
from tools_service.base.settings import Frozen, NotNegative, Positive, Probability


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

    def of_tool(self, tool: str) -> ToolStatistics:
        """The statistics of a tool; the means over the others if nothing is known of it."""
        if tool in self.tools:
            return self.tools[tool]
        known = [asdict(statistics) for statistics in self.tools.values()]
        return ToolStatistics(**{name: sum(item[name] for item in known) / len(known) for name in known[0]})


class _DemoFigures(Frozen):
    assumptions: Assumptions
    calls_per_s: dict[str, Positive]


_FIGURES = read_model(Path(__file__).parent / "figures" / "demo.json", _DemoFigures)

DEMO = _FIGURES.assumptions
"""A whole run of the recipe `demo`; `python -m bench.plan` measures these values again."""

CALLS_PER_S = _FIGURES.calls_per_s
"""Calls that one replica answers, by `python -m bench.tools` on one thread of two cores of an AMD EPYC, with
the demo's small models, in lists of 64. Elsewhere this is only the order of magnitude: use --calls-per-s.
The speed of other tools is measured (tool_speed.py)."""
