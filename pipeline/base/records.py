"""The records that the steps exchange, with one Arrow schema each.

A text is one row and leaves every step exactly once (docs/method.md). The steps work on the
dataclasses; the files hold the schemas. Only `Annotation.to_row` and `Annotation.from_row` convert
between the two. Nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import pyarrow as pa
from pydantic import AliasChoices, Field

Status = Literal["annotated", "no_calls", "skipped", "failed"]
POSITION_NOT_SCORABLE = "position_not_scorable"
"""The entry of `Funnel.discarded` that counts a position: the first token of a text, which has no loss
without a BOS. It is counted only where it would have been in I; all other entries count draws or calls."""
Phase = Literal["prompt", "positions", "decode", "empty", "plus", "call"]
"""Purpose of a forward pass: KV cache of a prompt, p_i, sampled calls, and the three losses."""


@dataclass(frozen=True, slots=True)
class Document:
    """The origin of a text: `source` is ``FILE#N``, where N counts rows or lines from 1.

    `date` (ISO ``YYYY-MM-DD``) is a field of the document, never the date of the crawl. Inference uses
    it; the selection for the calendar reads the URL instead.
    """

    source: str
    url: str | None = None
    title: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A passage of a document that fits the model together with the longest prompt.

    `text_id` (int64) depends on the source location alone: a rerun produces the same ids, and a
    duplicate page is two rows. `skipped` is the reason if the text must not be annotated.
    """

    text_id: int
    document: Document
    text: str
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled call that is not executed yet (steps 2 and 3).

    `position` is the character offset in the text before which the call is inserted; `token_index`
    is the index of the token that starts there; `p_api` is the probability of <API> there. `draws`
    counts the samples with this input. `p_name` is the probability of the tool's name after <API>, for
    draws that were given it (`given_name`).
    """

    tool: str
    position: int
    token_index: int
    p_api: float
    input: str
    draws: int = 1
    p_name: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A scored call. Losses are weighted negative log-probabilities in nats (paper section 2).

    `position` is the character offset in the text before which the call is inserted. `gain` is
    min(l_empty, l_call) - l_plus. If l_empty - l_plus is already below the lowest threshold of
    interest, `l_call` is not computed, because it could only lower the gain: then `l_call` is None
    and `gain` is the upper bound l_empty - l_plus. `p_name` is the candidate's; rows of earlier versions
    lack it.
    """

    tool: str
    position: int
    p_api: float
    input: str
    result: str
    l_plus: float
    l_empty: float
    l_call: float | None
    gain: float
    p_name: float | None = None


@dataclass(frozen=True, slots=True)
class Funnel:
    """Counts per stage for one text and one tool; the manifest holds their sums.

    `selection` is the rule that selected the text, or "no: REASON". `positions` is the size of I,
    `draws` the number of samples, `candidates` the number of distinct (position, input) pairs among
    well-formed samples, `executed` those with a result, `scored` those with finite losses.
    `discarded` counts discarded samples and calls by reason (see also POSITION_NOT_SCORABLE).
    """

    tool: str
    selection: str
    positions: int = 0
    draws: int = 0
    candidates: int = 0
    executed: int = 0
    scored: int = 0
    discarded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of forward passes, in the units that determine its FLOPs (cost.py).

    `tokens` are the tokens processed, without `padding` tokens. `attention_pairs` counts the pairs
    of tokens that attention compares, masked pairs included. `logits` counts rows of logits.
    """

    tokens: int = 0
    padding: int = 0
    attention_pairs: Annotated[int, Field(validation_alias=AliasChoices("attention_pairs", "seen"))] = 0
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
    """Work of one phase for one text: the lower bound of the exact method, and what was run.

    `tool` is None for L_i(empty). The aliases are the names in manifests of earlier versions.
    """

    tool: str | None
    phase: Phase
    lower_bound: Annotated[Cost, Field(validation_alias=AliasChoices("lower_bound", "least"))]
    run: Cost


@dataclass(frozen=True, slots=True)
class Annotation:
    """A text with every scored call; `reason` explains why it was skipped or failed."""

    text: Text
    status: Status
    reason: str | None = None
    calls: tuple[Call, ...] = ()
    funnel: tuple[Funnel, ...] = ()
    work: tuple[PhaseWork, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The row that ANNOTATION_SCHEMA describes."""
        return {
            "text_id": self.text.text_id,
            "document": _fields(self.text.document),
            "text": self.text.text,
            "status": self.status,
            "reason": self.reason,
            "calls": [_fields(call) for call in self.calls],
            "funnel": [
                _fields(stage)
                | {
                    "discarded": [
                        {"reason": reason, "count": count}
                        for reason, count in sorted(stage.discarded.items())
                    ]
                }
                for stage in self.funnel
            ],
            "work": [
                {
                    "tool": part.tool,
                    "phase": part.phase,
                    "lower_bound": _fields(part.lower_bound),
                    "run": _fields(part.run),
                }
                for part in self.work
            ],
        }

    @staticmethod
    def from_row(row: dict[str, Any]) -> Annotation:
        """The inverse of `to_row`, for rows read back with `to_pylist`."""
        text = Text(row["text_id"], Document(**row["document"]), row["text"])
        funnel = tuple(
            Funnel(**{**stage, "discarded": discarded_counts(stage["discarded"])}) for stage in row["funnel"]
        )
        calls = tuple(Call(**call) for call in row["calls"])
        work = tuple(
            PhaseWork(item["tool"], item["phase"], Cost(**item["lower_bound"]), Cost(**item["run"]))
            for item in row["work"]
        )
        return Annotation(text, row["status"], row["reason"], calls, funnel, work)


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass with slots, by name. `asdict` copies them, which takes ten times as long."""
    return {name: getattr(record, name) for name in record.__slots__}


def discarded_counts(entries: Iterable[Mapping[str, Any] | tuple[str, int]]) -> dict[str, int]:
    """`Funnel.discarded` of a row: a list of structs, or the map that earlier versions wrote."""
    return dict(entry if isinstance(entry, tuple) else (entry["reason"], entry["count"]) for entry in entries)


def reason_kind(reason: str) -> str:
    """The kind in a reason of the form ``KIND: details at FILE#N``, for counting."""
    return reason.partition(":")[0]


_ARROW_TYPES: dict[object, pa.DataType] = {
    **dict.fromkeys((str, str | None, str, str | None, Phase), pa.string()),
    **dict.fromkeys((float, float | None), pa.float64()),
    int: pa.int64(),
    # Not a map, which `datasets` does not read.
    dict[str, int]: pa.list_(pa.struct({"reason": pa.string(), "count": pa.int64()})),
}


def _struct(record: type) -> pa.StructType:
    """The Arrow type of a dataclass, whose fields may be dataclasses."""
    hints = get_type_hints(record)
    return pa.struct({name: _ARROW_TYPES.get(hint) or _struct(hint) for name, hint in hints.items()})


TEXT_SCHEMA = pa.schema(_struct(Text))
ANNOTATION_SCHEMA = pa.schema(
    {
        "text_id": pa.int64(),
        "document": _struct(Document),
        "text": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "calls": pa.list_(_struct(Call)),
        "funnel": pa.list_(_struct(Funnel)),
        "work": pa.list_(_struct(PhaseWork)),
    }
)
AUGMENTED_SCHEMA = pa.schema(
    {
        "text_id": pa.int64(),
        "text": pa.string(),
        "plain": pa.string(),
        "tool_names": pa.list_(pa.string()),
    }
)
