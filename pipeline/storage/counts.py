"""Counts over all annotated texts, for manifest.json (docs/outputs.md).

In: the rows on disk, streamed. Out: `Counts`: each row counts once under its status, and the funnel of a
tool is the sum of its funnels in the rows. Interruptions of the run do not change the counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, get_args

from pipeline.base.config import MethodConfig
from pipeline.base.records import (
    POSITION_NOT_SCORABLE,
    Cost,
    Phase,
    PhaseWork,
    discarded_counts,
    reason_kind,
)
from tools_service.base.settings import Frozen
from tools_service.contract.declarations import in_order
from tools_service.syntax.calls import has_call_syntax

COLUMNS = ("text", "status", "reason", "calls", "funnel", "work")
DAMAGED_FILE = "damaged file"  # the kind of reason of a file that cannot be read to its end
_MAX_NAMED = 20
_STAGES = ("positions", "draws", "candidates", "executed", "scored")
_SUMS = ("texts", "selected", *_STAGES, "kept", "texts_kept")
_WorkKey = tuple[str | None, Phase]


class ToolCounts(Frozen):
    """The funnel of one tool. `texts` and `selected` count texts; the other fields count calls."""

    texts: int  # texts that were neither skipped nor failed
    selected: int  # texts among them that the tool was tried on
    selection: dict[str, int]
    """Texts by the rule that selected them, or by the reason against them ("no: …")."""
    positions: int
    draws: int
    candidates: int
    executed: int
    scored: int
    kept: int  # calls with a gain of at least the method's tau_f
    texts_kept: int  # texts with a kept call
    discarded: dict[str, int]  # discarded draws and calls, by reason
    largest_gain: float | None = None
    """Largest gain of a scored call, in nats; None without one, and in manifests of earlier versions."""
    largest_gain_is_bound: bool = False
    """Whether `largest_gain` is an upper bound, because l_call was not computed for that call."""
    positions_not_scorable: int = 0
    """Positions left out of I because a text's first token has no loss without a BOS. Manifests of
    earlier versions count them in `discarded`, those beyond the k likeliest too."""


class Counts(Frozen):
    """Counts of a run. `status` adds up to `texts`; `reasons` of a status add up to its texts."""

    texts: int
    status: dict[str, int]
    reasons: dict[str, dict[str, int]]
    calls: int  # scored calls in the rows
    token_forwards: int
    """Tokens run through the model for these texts, without padding and the shared prompts."""
    work: tuple[PhaseWork, ...] = ()
    """Lower bound and work done, by tool and phase, with padding, attention and logits."""
    tools: dict[str, ToolCounts]
    call_syntax: int = 0
    """Texts, neither skipped nor failed, that already held call syntax before any call was inserted."""
    damaged_files: tuple[str, ...] = ()
    """Names of the first files (20 at most) that could not be read to their end; `reasons` has the number."""


def count_rows(rows: Iterable[Mapping[str, Any]], method: MethodConfig) -> Counts:
    """Count annotation rows (dictionaries with at least COLUMNS)."""
    status: Counter[str] = Counter()
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    calls = call_syntax = 0
    damaged: set[str] = set()
    tools = {tool: _ToolSum() for tool in method.tools}
    lower_bounds: defaultdict[_WorkKey, Cost] = defaultdict(Cost)
    run: defaultdict[_WorkKey, Cost] = defaultdict(Cost)
    for row in rows:
        status[row["status"]] += 1
        calls += len(row["calls"])
        for item in row["work"]:
            key = item["tool"], item["phase"]
            lower_bounds[key] += Cost(**item["lower_bound"])
            run[key] += Cost(**item["run"])
        if row["reason"] is not None:
            kind = reason_kind(row["reason"])
            reasons[row["status"]][kind] += 1
            if kind == DAMAGED_FILE:
                damaged.add(row["reason"].rpartition(" at ")[2].rpartition("#")[0])
        elif has_call_syntax(row["text"], method.tools):
            call_syntax += 1
        for stage in row["funnel"]:
            tools[stage["tool"]].add(stage)
        kept = Counter(call["tool"] for call in row["calls"] if call["gain"] >= method.of(call["tool"]).tau_f)
        for call in row["calls"]:
            tools[call["tool"]].add_gain(call["gain"], is_bound=call["l_call"] is None)
        for tool, number in kept.items():
            tools[tool].sums.update(kept=number, texts_kept=1)
    # Tools in the order of the paper, shared work last; phases in the order of execution.
    keys = [key for key in product((*in_order(method.tools), None), get_args(Phase)) if key in run]
    return Counts(
        texts=status.total(),
        status=dict(status),
        reasons={name: dict(by_kind.most_common()) for name, by_kind in reasons.items()},
        calls=calls,
        token_forwards=sum(cost.tokens for cost in run.values()),
        work=tuple(PhaseWork(*key, lower_bounds[key], run[key]) for key in keys),
        tools={tool: sums.counts() for tool, sums in tools.items()},
        call_syntax=call_syntax,
        damaged_files=tuple(sorted(damaged)[:_MAX_NAMED]),
    )


class _ToolSum:
    def __init__(self) -> None:
        self.sums = Counter(dict.fromkeys(_SUMS, 0))
        self.selection: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.largest: tuple[float, bool] | None = None

    def add_gain(self, gain: float, *, is_bound: bool) -> None:
        """Of equal gains an exact one goes before a bound, whatever the order of the rows."""
        exact = not is_bound
        self.largest = max(self.largest or (gain, exact), (gain, exact))

    def add(self, stage: Mapping[str, Any]) -> None:
        rule = stage["selection"]
        selected = not rule.startswith("no: ")
        self.selection[rule if selected else f"no: {reason_kind(rule.removeprefix('no: '))}"] += 1
        self.sums.update(texts=1, selected=int(selected), **{name: stage[name] for name in _STAGES})
        discarded = discarded_counts(stage["discarded"])
        self.sums["positions_not_scorable"] += discarded.pop(POSITION_NOT_SCORABLE, 0)
        self.discarded.update(discarded)

    def counts(self) -> ToolCounts:
        return ToolCounts(
            **self.sums,
            selection=dict(self.selection.most_common()),
            discarded=dict(self.discarded.most_common()),
            largest_gain=self.largest and self.largest[0],
            largest_gain_is_bound=self.largest is not None and not self.largest[1],
        )
