from __future__ import annotations

from typing import Literal, NamedTuple

ReasonStage = Literal["skipped", "failed", "not selected", "discarded draw", "no result", "not scored"]
NOT_SCORED = frozenset({"context", "input_only_after_position", "unwritable", "call_not_scorable"})


class Explanation(NamedTuple):
    meaning: str
    advice: str = ""


def explain(stage: ReasonStage, reason: str, tool: str | None = None) -> Explanation:
    return Explanation(reason)
