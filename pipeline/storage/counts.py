"""What became of all texts, summed from the rows on disk (for manifest.json; docs/outputs.md).

Rows are streamed. Every row counts once under its status, and every tool's funnel is the sum of the rows'
funnels, so nothing depends on how often the run that wrote them was interrupted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pipeline.base.config import MethodConfig
from pipeline.base.records import Cost, Phase, PhaseWork, reason_kind
from tools_service.base.settings import Frozen
from tools_service.tools.contract import TOOL_NAMES, ToolName

COLUMNS = ("status", "reason", "calls", "funnel", "work")
_STAGES = ("positions", "draws", "candidates", "executed", "scored")


class ToolCounts(Frozen):
    """The funnel of one tool. `texts` and `selected` count texts, the rest draws and calls."""

    texts: int
    """Texts that were not skipped and did not fail."""
    selected: int
    """Of these, the texts the tool was tried on."""
    selection: dict[str, int]
    """Texts by the rule that chose them, or by the reason why none did ("no: …")."""
    positions: int
    draws: int
    candidates: int
    executed: int
    scored: int
    kept: int
    """Calls with a gain of at least the method's tau_f."""
    texts_kept: int
    """Texts with such a call."""
    discarded: dict[str, int]
    """Draws and calls that fell out on the way, by reason."""


class Counts(Frozen):
    """`status` adds up to `texts`; `reasons`, by status, to the texts with that status."""

    texts: int
    status: dict[str, int]
    reasons: dict[str, dict[str, int]]
    calls: int
    """Scored calls in the rows."""
    token_forwards: int
    """Tokens run through the model for these texts; padding and the shared prompts are not in it."""
    work: tuple[PhaseWork, ...] = ()
    """The same with padding, attention and logits, by tool and phase, beside the least there is to do."""
    tools: dict[ToolName, ToolCounts]


def count_rows(rows: Iterable[Mapping[str, Any]], method: MethodConfig) -> Counts:
    """The counts of annotation rows (dictionaries with at least COLUMNS)."""
    status: Counter[str] = Counter()
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    tools = {tool: _ToolSum() for tool in method.tools}
    work: dict[tuple[ToolName | None, Phase], tuple[Cost, Cost]] = {}
    for row in rows:
        status[row["status"]] += 1
        totals["calls"] += len(row["calls"])
        for part in row["work"]:
            least, run = work.get((part["tool"], part["phase"]), (Cost(), Cost()))
            work[part["tool"], part["phase"]] = least + Cost(**part["lower_bound"]), run + Cost(**part["run"])
        if row["reason"] is not None:
            reasons[row["status"]][reason_kind(row["reason"])] += 1
        for stage in row["funnel"]:
            tools[stage["tool"]].add(stage)
        kept = Counter(call["tool"] for call in row["calls"] if call["gain"] >= method.of(call["tool"]).tau_f)
        for tool, number in kept.items():
            tools[tool].sums.update(kept=number, texts_kept=1)
    return Counts(
        texts=status.total(),
        status=dict(status),
        reasons={name: dict(by_kind.most_common()) for name, by_kind in reasons.items()},
        calls=totals["calls"],
        token_forwards=sum(run.tokens for _, run in work.values()),
        work=tuple(PhaseWork(*key, *costs) for key, costs in sorted(work.items(), key=_order)),
        tools={tool: found.counts() for tool, found in tools.items()},
    )


def _order(item: tuple[tuple[ToolName | None, Phase], Any]) -> tuple[int, int]:
    """Tools as the paper lists them, what they share last; phases as they are run."""
    tool, phase = item[0]
    return len(TOOL_NAMES) if tool is None else TOOL_NAMES.index(tool), get_args(Phase).index(phase)


class _ToolSum:
    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.selection: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()

    def add(self, stage: Mapping[str, Any]) -> None:
        rule = stage["selection"]
        chosen = not rule.startswith("no: ")
        self.selection[rule if chosen else f"no: {reason_kind(rule.removeprefix('no: '))}"] += 1
        self.sums.update(texts=1, selected=int(chosen), **{name: stage[name] for name in _STAGES})
        self.discarded.update(dict(stage["discarded"]))

    def counts(self) -> ToolCounts:
        names = ("texts", "selected", *_STAGES, "kept", "texts_kept")
        return ToolCounts(
            **{name: self.sums[name] for name in names},
            selection=dict(self.selection.most_common()),
            discarded=dict(self.discarded.most_common()),
        )
