"""Step 5, merge: which calls and texts go into C* (paper section 2, "Filtering API Calls", and
section 4.1).

In: annotation rows, tau_f by tool, the cap. Out: the calls of each text that stay. One pass
over the rows keeps at most `max_examples` priorities per tool. Reading annotations and writing
C* is augmentation/'s.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.config import CapBy
from pipeline.base.records import Call
from pipeline.method.filtering import kept, only_after
from tools_service.contract.declarations import in_order

THRESHOLDS = (
    0.5,
    1.0,
    2.0,
)  # the columns of the paper's table of examples by tool (section 4.1)

TauF = Mapping[str, float]


def kept_calls(
    calls: Iterable[Mapping[str, Any]],
    text: str,
    tau_f: TauF,
    input_rule: Collection[str] = (),
) -> list[Call]:
    """The calls with a gain of at least tau_f, by position and tool.

    Calls of tools without a tau_f go. Of several calls of one tool at one position the one
    with the largest gain stays, of equal gains the input first in the alphabet: two answers
    at one place would teach the model to ask twice. Calls of the tools in `input_rule` go if
    their input stands in the text only after them.
    """
    best: dict[tuple[int, str], Call] = {}
    order = {tool: number for number, tool in enumerate(in_order(tau_f))}
    for row in calls:
        # Most calls end here, before they cost anything.
        if row["gain"] < tau_f.get(row["tool"], math.inf):
            continue
        call = Call(**row)
        if not kept(call, tau_f[call.tool]) or _breaks_rule(
            row, text, input_rule
        ):
            continue
        place = call.position, call.tool
        # Of equal preference the first stays.
        best[place] = min(best.get(place, call), call, key=_preference)
    return sorted(
        best.values(),
        key=lambda call: (call.position, order[call.tool]),
    )


def _preference(call: Call) -> tuple[float, str]:
    return -call.gain, call.input


Priority = tuple[float, int]
"""Of a text under a tool: the cap admits the lowest."""


def priorities(
    calls: Iterable[Call], text_id: int, seed: int, cap_by: CapBy
) -> dict[str, Priority]:
    """The priority of a text for each tool of its kept calls.

    By gain, the text with the largest gain of a call goes first. The rank decides between
    equal gains, and everything if the choice is random.
    """
    largest: dict[str, float] = {}
    for call in calls:
        largest[call.tool] = max(call.gain, largest.get(call.tool, call.gain))
    by_gain = cap_by == "gain"
    return {
        tool: (-gain if by_gain else 0.0, rank(seed, tool, text_id))
        for tool, gain in largest.items()
    }


def _breaks_rule(
    call: Mapping[str, Any], text: str, input_rule: Collection[str]
) -> bool:
    if call["tool"] not in input_rule:
        return False
    return only_after(call["input"], text, call["position"])


@dataclass(slots=True)
class ToolChoice:
    """The texts of one tool: how many have a kept call, and which of them the cap admits."""

    max_examples: int
    candidates: int = 0
    at: Counter[float] = field(default_factory=Counter)
    """Texts whose best call reaches each of THRESHOLDS; exact from the tool's tau_f on."""
    # The lowest priorities so far, at most `max_examples`, negated: a heap whose first
    # element is the highest of them.
    _lowest: list[Priority] = field(default_factory=list)

    def offer(self, priority: Priority) -> None:
        """Count a text with a kept call."""
        self.candidates += 1
        if len(self._lowest) < self.max_examples:
            heapq.heappush(self._lowest, _negated(priority))
        else:
            heapq.heappushpop(self._lowest, _negated(priority))

    def takes(self, priority: Priority) -> bool:
        """Whether a text that was offered is among the chosen."""
        return priority <= _negated(self._lowest[0])


def _negated(priority: Priority) -> Priority:
    return -priority[0], -priority[1]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The result of `choose`: says for each text which calls stay."""

    tau_f: TauF
    seed: int
    tools: dict[str, ToolChoice]
    one_per_position: bool = False
    """Of several tools at one position only the one that a seeded choice prefers stays."""
    input_rule: frozenset[str] = frozenset()
    """Tools whose calls go if their input stands in the text only after them."""
    cap_by: CapBy = "random"

    def kept(self, row: Mapping[str, Any]) -> list[Call]:
        """The kept calls of this text, whether or not the caps admit it."""
        return kept_calls(
            row["calls"], row["text"], self.tau_f, self.input_rule
        )

    def calls(self, row: Mapping[str, Any]) -> list[Call]:
        """The calls to insert into this text; none if the text is not in C*."""
        calls = self.kept(row)
        given = priorities(calls, row["text_id"], self.seed, self.cap_by)
        chosen = [
            call
            for call in calls
            if self.tools[call.tool].takes(given[call.tool])
        ]
        if not self.one_per_position:
            return chosen
        preferred: dict[int, Call] = {}
        for call in sorted(chosen, key=lambda call: given[call.tool][1]):
            preferred.setdefault(call.position, call)
        return [call for call in chosen if preferred[call.position] is call]


def choose(
    rows: Iterable[Mapping[str, Any]],
    tau_f: TauF,
    max_examples: int,
    seed: int,
    *,
    one_per_position: bool = False,
    input_rule: frozenset[str] = frozenset(),
    cap_by: CapBy = "random",
) -> Mixture:
    """Look at every text once; for each tool the max_examples texts of lowest priority stay.

    That is a random choice, or one by gain, which depends on seed, tool and text alone, not
    on the order of the rows.
    """
    tools = {tool: ToolChoice(max_examples) for tool in tau_f}
    for row in rows:
        calls = kept_calls(row["calls"], row["text"], tau_f, input_rule)
        given = priorities(calls, row["text_id"], seed, cap_by)
        for tool, priority in given.items():
            tools[tool].offer(priority)
        for tool, gain in _best_gains(row, input_rule).items():
            if tool in tau_f:
                tools[tool].at.update(
                    limit for limit in THRESHOLDS if gain >= limit
                )
    return Mixture(tau_f, seed, tools, one_per_position, input_rule, cap_by)


def _best_gains(
    row: Mapping[str, Any], input_rule: Collection[str]
) -> dict[str, float]:
    """The largest gain of each tool's calls."""
    best: dict[str, float] = {}
    for call in row["calls"]:
        if not _breaks_rule(call, row["text"], input_rule):
            tool, gain = call["tool"], call["gain"]
            best[tool] = max(gain, best.get(tool, gain))
    return best


def rank(seed: int, tool: str, text_id: int) -> int:
    """A number below 2**64, random over texts and tools, and the same in every run."""
    key = f"{seed} {tool} {text_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
