"""The records that travel between the steps, with one Arrow schema each.

A text is one row and leaves every step exactly once (docs/method.md). The dataclasses are what the steps
work on; the schemas are what the files hold. `Annotation.to_row` and `Annotation.from_row` are the only
places that translate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from tools_service.tools.contract import ToolName

Status = Literal["annotated", "no_calls", "skipped", "failed"]
Phase = Literal["prompt", "positions", "decode", "empty", "plus", "call"]
"""What the model runs for: a prompt's keys and values; p_i; the draws; the three losses."""


@dataclass(frozen=True, slots=True)
class Document:
    """Where a text comes from.

    `source` is ``FILE#N``, N counting rows or lines from 1. `date` is ISO ``YYYY-MM-DD``: the document's
    own field if it has one (used at inference), never the date of the crawl; the calendar's selection reads
    the URL itself.
    """

    source: str
    url: str | None = None
    title: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A passage of a document that fits the model together with the longest prompt.

    `text_id` is an int64 determined by the source location alone, so a rerun finds the same ids and a
    duplicate page is still two rows. `skipped` carries the reason when the text must not be annotated
    (empty, unreadable line, …).
    """

    text_id: int
    document: Document
    text: str
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled call that is not executed yet (steps 2 and 3).

    `position` is the character offset in the text before which it stands, `token_index` that token's index
    among the text's tokens, `p_api` the probability of <API> there. `draws` counts the samples that gave
    this input.
    """

    tool: ToolName
    position: int
    token_index: int
    p_api: float
    input: str
    draws: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One scored call. Losses are weighted negative log-probabilities in nats (paper section 2, "Filtering").

    `position` is the character offset in the text before which the call stands. `l_call` is None when it
    was not needed: l_empty - l_plus was already below the lowest threshold of interest, and l_call could
    only lower the gain; `gain` is then that upper bound, l_empty - l_plus. Otherwise gain = min(l_empty,
    l_call) - l_plus.
    """

    tool: ToolName
    position: int
    p_api: float
    input: str
    result: str
    l_plus: float
    l_empty: float
    l_call: float | None
    gain: float


@dataclass(frozen=True, slots=True)
class Funnel:
    """What became of one text under one tool; the manifest's counts are sums of these.

    `selection` is the rule that chose the text or "no: REASON". `positions` counts i in I, `draws` the
    samples taken, `candidates` the distinct (position, input) among the draws that became a call,
    `executed` those with a result, `scored` those with finite losses. `discarded` counts draws and calls
    that fell out, by reason.
    """

    tool: ToolName
    selection: str
    positions: int = 0
    draws: int = 0
    candidates: int = 0
    executed: int = 0
    scored: int = 0
    discarded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """Forwards of the model, in the sizes that its FLOPs follow from (planning.py).

    `tokens` went through it and `padding` along with them; attention compared
    `attention_pairs` pairs of tokens, masked ones included; `logits` counts rows of logits.
    """

    tokens: int = 0
    padding: int = 0
    attention_pairs: int = 0
    logits: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens,
            self.padding + other.padding,
            self.attention_pairs + other.attention_pairs,
            self.logits + other.logits,
        )


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What one phase took for one text: the least that the exact method can do, and what was run.

    `tool` is None for L_i(empty), which all tools of the text share.
    """

    tool: ToolName | None
    phase: Phase
    lower_bound: Cost
    run: Cost


@dataclass(frozen=True, slots=True)
class Annotation:
    """One text with every scored call; `reason` says why when it was skipped or failed."""

    text: Text
    status: Status
    reason: str | None = None
    calls: tuple[Call, ...] = ()
    funnel: tuple[Funnel, ...] = ()
    work: tuple[PhaseWork, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The row that ANNOTATION_SCHEMA describes."""
        funnel = [{**asdict(stage), "discarded": sorted(stage.discarded.items())} for stage in self.funnel]
        return {
            "text_id": self.text.text_id,
            "document": asdict(self.text.document),
            "text": self.text.text,
            "status": self.status,
            "reason": self.reason,
            "calls": [asdict(call) for call in self.calls],
            "funnel": funnel,
            "work": [asdict(part) for part in self.work],
        }

    @staticmethod
    def from_row(row: dict[str, Any]) -> Annotation:
        """The inverse of `to_row`, for rows read back with `to_pylist`."""
        text = Text(row["text_id"], Document(**row["document"]), row["text"])
        funnel = tuple(Funnel(**{**stage, "discarded": dict(stage["discarded"])}) for stage in row["funnel"])
        calls = tuple(Call(**call) for call in row["calls"])
        work = tuple(
            PhaseWork(**{**part, "lower_bound": Cost(**part["lower_bound"]), "run": Cost(**part["run"])})
            for part in row["work"]
        )
        return Annotation(text, row["status"], row["reason"], calls, funnel, work)


def reason_kind(reason: str) -> str:
    """The part of a reason (``KIND: details at FILE#N``) that all of its kind share, to count by."""
    return reason.partition(":")[0]


_DOCUMENT = pa.struct(
    [("source", pa.string()), ("url", pa.string()), ("title", pa.string()), ("date", pa.string())]
)

TEXT_SCHEMA = pa.schema(
    [("text_id", pa.int64()), ("document", _DOCUMENT), ("text", pa.string()), ("skipped", pa.string())]
)

_CALL = pa.struct(
    [
        ("tool", pa.string()),
        ("position", pa.int64()),
        ("p_api", pa.float64()),
        ("input", pa.string()),
        ("result", pa.string()),
        ("l_plus", pa.float64()),
        ("l_empty", pa.float64()),
        ("l_call", pa.float64()),
        ("gain", pa.float64()),
    ]
)

_FUNNEL = pa.struct(
    [
        ("tool", pa.string()),
        ("selection", pa.string()),
        ("positions", pa.int64()),
        ("draws", pa.int64()),
        ("candidates", pa.int64()),
        ("executed", pa.int64()),
        ("scored", pa.int64()),
        ("discarded", pa.map_(pa.string(), pa.int64())),
    ]
)

_COST = pa.struct(
    [("tokens", pa.int64()), ("padding", pa.int64()), ("attention_pairs", pa.int64()), ("logits", pa.int64())]
)

_WORK = pa.struct([("tool", pa.string()), ("phase", pa.string()), ("lower_bound", _COST), ("run", _COST)])

ANNOTATION_SCHEMA = pa.schema(
    [
        ("text_id", pa.int64()),
        ("document", _DOCUMENT),
        ("text", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("calls", pa.list_(_CALL)),
        ("funnel", pa.list_(_FUNNEL)),
        ("work", pa.list_(_WORK)),
    ]
)

AUGMENTED_SCHEMA = pa.schema(
    [
        ("text_id", pa.int64()),
        ("text", pa.string()),
        ("plain", pa.string()),
        ("tools", pa.list_(pa.string())),
    ]
)
