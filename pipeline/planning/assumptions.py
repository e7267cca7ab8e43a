"""What is assumed of a model before it has run: what a text brings under each tool, what the engine adds.

In: nothing, for the values measured on the demo; or a finished run, through experience.py. Out:
`Assumptions`, which forecasting.py turns into work. How many positions are above tau_s, how long draws are
and which help is the model's and the corpus's own affair, so these are the weak side of every plan: a run of
a few hundred texts of your own is worth more than all that stands here.
"""

from __future__ import annotations

from pipeline.base.records import Phase
from tools_service.base.settings import Frozen, NotNegative, Probability
from tools_service.tools.contract import ToolName


class Habit(Frozen):
    """What a text brings under a tool that it was selected for, on average. Lengths are in tokens."""

    fill: Probability
    """Positions, as a share of k."""
    step: NotNegative
    """Tokens run for a draw, beginnings that it shares with others of its position counted once for all."""
    candidates: NotNegative
    """Calls sent to the tool, per draw."""
    scored: NotNegative
    """Distinct (c, r) of a text with losses, per draw."""
    plus: NotNegative
    """Length of e(c, r), BOS not included."""
    call: NotNegative
    """Length of e(c)."""
    reach: Probability
    """How far into the text the last position of a (c, r) stands, as a share of the text."""
    targets: NotNegative
    """Tokens whose probability a (c, r) wants."""
    close: Probability
    """Share of the (c, r) whose L_i(e(c)) is needed."""
    texts_kept: Probability
    """Share of the texts with a call at tau_f or above."""


class Overhead(Frozen):
    """What the engine runs, per unit of what forecasting.py foresees for the same texts."""

    tokens: NotNegative = 1.0
    padding: NotNegative = 0.0
    """Per token."""
    attention_pairs: NotNegative = 1.0
    """Pairs of tokens, those that attention's mask hides included."""


class Size(Frozen):
    """Bytes of annotations on disk."""

    text: NotNegative
    """Per character of the texts."""
    rest: NotNegative
    """Per text: its document, calls, funnel and work, and its share of the file."""


class Pace(Frozen):
    """How fast a run was. Tools that share a machine with the annotators slow them, which is in it."""

    actors: int
    flops_per_s: float
    """Of one actor, once all had their models."""


class Assumptions(Frozen):
    """Everything that a plan does not read from the corpus, the prompts and the model's configuration."""

    source: str
    tools: dict[ToolName, Habit]
    overheads: dict[Phase, Overhead]
    size: Size
    start_s: NotNegative
    """What a run takes besides its work: starting Ray, the tools and the models."""
    pace: Pace | None = None


DEMO = Assumptions(
    source="the demo's pages and its annotator",
    tools={
        "QA": Habit(
            fill=0.131,
            step=4.17,
            candidates=0.479,
            scored=0.464,
            plus=15.7,
            call=11.7,
            reach=0.54,
            targets=4.7,
            close=0.74,
            texts_kept=0.34,
        ),
        "WikiSearch": Habit(
            fill=0.131,
            step=1.45,
            candidates=0.239,
            scored=0.165,
            plus=46.0,
            call=7.2,
            reach=0.58,
            targets=6.0,
            close=0.73,
            texts_kept=0.33,
        ),
        "Calculator": Habit(
            fill=1.0,
            step=1.85,
            candidates=0.344,
            scored=0.193,
            plus=10.8,
            call=7.2,
            reach=0.57,
            targets=7.0,
            close=0.29,
            texts_kept=0.99,
        ),
        "Calendar": Habit(
            fill=0.056,
            step=0.36,
            candidates=0.2,
            scored=0.183,
            plus=14.0,
            call=3.0,
            reach=0.49,
            targets=5.5,
            close=0.9,
            texts_kept=0.23,
        ),
        "MT": Habit(
            fill=1.0,
            step=6.87,
            candidates=0.312,
            scored=0.161,
            plus=34.4,
            call=18.1,
            reach=0.58,
            targets=6.6,
            close=0.4,
            texts_kept=1.0,
        ),
    },
    overheads={
        "positions": Overhead(tokens=1.0, padding=0.011, attention_pairs=1.45),
        "decode": Overhead(tokens=1.0, padding=0.0, attention_pairs=3.07),
        "empty": Overhead(tokens=1.25, padding=0.001, attention_pairs=2.43),
        "plus": Overhead(tokens=1.06, padding=0.021, attention_pairs=1.32),
        "call": Overhead(tokens=1.01, padding=0.004, attention_pairs=1.34),
    },
    size=Size(text=0.6, rest=870.0),
    start_s=80.0,
)
"""Measured on a whole run of the recipe `demo` (`python -m bench.plan` prints them anew)."""

CALLS_PER_S: dict[ToolName, float] = {
    "QA": 100.0,
    "WikiSearch": 1_000.0,
    "Calculator": 10_000.0,
    "Calendar": 10_000.0,
    "MT": 200.0,
}
"""Answered by one replica."""
