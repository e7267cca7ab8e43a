"""Which calls and texts go into C*: thresholds and caps (paper section 2, "Filtering API Calls", and 4.1).

In: annotation rows, tau_f by tool, the cap. Out: the calls of a text that stay. Pure; one pass over the rows,
keeping at most `max_examples` numbers per tool.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.records import Call
from pipeline.method.filtering import kept, only_after
from tools_service.tools.contract import TOOL_NAMES, ToolName

THRESHOLDS = (0.5, 1.0, 2.0)
"""The columns of the paper's table of examples by tool (section 4.1)."""

TauF = Mapping[ToolName, float]


def kept_calls(calls: Iterable[Mapping[str, Any]], text: str, tau_f: TauF) -> list[Call]:
    """The calls that help by at least tau_f, by position and tool; calls of other tools than tau_f's go.

    Of several of one tool at one position the one with the largest gain stays, of equal gains the input that
    comes first in the alphabet: two answers at one place would teach the model to ask twice.
    """
    best: dict[tuple[int, ToolName], Call] = {}
    for row in calls:
        if row["gain"] < tau_f.get(row["tool"], math.inf):  # most calls end here, before they cost anything
            continue
        call = Call(**row)
        if not kept(call, tau_f[call.tool]):
            continue
        if call.tool == "MT" and only_after(call.input, text, call.position):
            continue
        place = call.position, call.tool
        if place not in best or _preference(call) < _preference(best[place]):
            best[place] = call
    return sorted(best.values(), key=lambda call: (call.position, TOOL_NAMES.index(call.tool)))


def _preference(call: Call) -> tuple[float, str]:
    return -call.gain, call.input


@dataclass(slots=True)
class ToolChoice:
    """The texts of one tool: how many have a kept call, and which of them the cap lets through."""

    most: int
    candidates: int = 0
    at: Counter[float] = field(default_factory=Counter)
    """Texts whose best call reaches each of THRESHOLDS; right for those that are not below tau_f's floor."""
    _lowest: list[int] = field(default_factory=list)
    """The lowest ranks seen, at most `most`, negated: a heap with the highest of them in front."""

    def offer(self, rank: int) -> None:
        """Count a text with a kept call."""
        self.candidates += 1
        if len(self._lowest) < self.most:
            heapq.heappush(self._lowest, -rank)
        else:
            heapq.heappushpop(self._lowest, -rank)

    def takes(self, rank: int) -> bool:
        """Whether a text that was offered is among the chosen."""
        return rank <= -self._lowest[0]


@dataclass(frozen=True, slots=True)
class Mixture:
    """What `choose` found out; says for each text which calls stay."""

    tau_f: TauF
    seed: int
    tools: dict[ToolName, ToolChoice]
    one_per_position: bool = False
    """Of several tools with calls at one position, only the one that a seeded choice prefers stays."""

    def calls(self, row: Mapping[str, Any]) -> list[Call]:
        """The calls to put into this text; none if it is not in C*."""
        found = kept_calls(row["calls"], row["text"], self.tau_f)
        ranks = {tool: rank(self.seed, tool, row["text_id"]) for tool in {call.tool for call in found}}
        left = [call for call in found if self.tools[call.tool].takes(ranks[call.tool])]
        if not self.one_per_position:
            return left
        first: dict[int, Call] = {}
        for call in sorted(left, key=lambda call: ranks[call.tool]):
            first.setdefault(call.position, call)
        return [call for call in left if first[call.position] is call]


def choose(
    rows: Iterable[Mapping[str, Any]],
    tau_f: TauF,
    max_examples: int,
    seed: int,
    *,
    one_per_position: bool = False,
) -> Mixture:
    """Look at every text once. For each tool the max_examples texts with the lowest ranks stay.

    That is a random choice which depends on seed, tool and text alone, not on the order of the rows.
    """
    mixture = Mixture(tau_f, seed, {tool: ToolChoice(max_examples) for tool in tau_f}, one_per_position)
    for row in rows:
        for tool in {call.tool for call in kept_calls(row["calls"], row["text"], tau_f)}:
            mixture.tools[tool].offer(rank(seed, tool, row["text_id"]))
        gains = _best_gains(row)
        for tool, gain in gains.items():
            if tool in tau_f:
                mixture.tools[tool].at.update(limit for limit in THRESHOLDS if gain >= limit)
    return mixture


def _best_gains(row: Mapping[str, Any]) -> dict[ToolName, float]:
    best: dict[ToolName, float] = {}
    for call in row["calls"]:
        if call["tool"] == "MT" and only_after(call["input"], row["text"], call["position"]):
            continue
        best[call["tool"]] = max(call["gain"], best.get(call["tool"], call["gain"]))
    return best


def rank(seed: int, tool: ToolName, text_id: int) -> int:
    """A number below 2**64 that is random over texts and tools, and the same in every run."""
    key = f"{seed} {tool} {text_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
