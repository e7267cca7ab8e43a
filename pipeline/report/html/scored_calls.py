"""The scored calls of an annotation as columns, for counting at any threshold as `merge` does.

In: batches of annotation rows. Out: `ScoredCalls`. Of very many calls a sample of whole texts stays, chosen
by a hash of the text's id; memory does not grow with the annotation.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from pipeline.base.config import MergeConfig
from pipeline.method.filtering import only_after
from pipeline.method.merging import rank
from pipeline.report.html.data import ScoredCalls

MAX_CALLS = 40_000  # in the page; more are sampled

_SORT_KEYS = [(name, "ascending") for name in ("row", "tool", "position")]
_SORT_KEYS += [("gain", "descending"), ("input", "ascending")]  # as `merge` prefers calls at one position


@dataclass(frozen=True, slots=True)
class CallBatch:
    """Calls of a batch of rows that `merge` could keep, as arrays of equal length."""

    row: NDArray[np.int64]  # in the batch
    text_id: NDArray[np.int64]
    tool: NDArray[np.uint8]  # index in the list of tools
    position: NDArray[np.int64]  # characters
    gain: NDArray[np.float64]  # nats
    p_api: NDArray[np.float64]
    is_bound: NDArray[np.bool_]
    call: NDArray[np.int64]  # index in the flattened calls of the batch


def mergeable_calls(rows: pa.RecordBatch, tools: Sequence[str], input_rule: Collection[str]) -> CallBatch:
    """The calls of `rows` (text_id, text, calls) without those that `merge` drops at every threshold.

    Those are the calls that break the rule on inputs, and all calls of one tool at one position but the one
    with the largest gain, of equal gains that with the input first in the alphabet.
    """
    calls = rows["calls"].flatten()  # [calls of all rows]
    table = pa.table(
        {
            "row": pc.list_parent_indices(rows["calls"]),
            "tool": pc.index_in(calls.field("tool"), pa.array(tools, pa.string())),
            **{name: calls.field(name) for name in ("position", "gain", "input", "p_api", "l_call")},
            "call": np.arange(len(calls)),
        }
    )
    if input_rule:
        table = table.filter(pa.array(_obeys_rule(table, rows, tools, input_rule)))
    table = table.take(pc.sort_indices(table, sort_keys=_SORT_KEYS))
    place = np.stack([table[name].to_numpy() for name in ("row", "tool", "position")])
    is_best = np.ones(table.num_rows, bool)
    is_best[1:] = (place[:, 1:] != place[:, :-1]).any(axis=0)
    best = table.filter(pa.array(is_best))
    row = best["row"].to_numpy()
    return CallBatch(
        row=row,
        text_id=rows["text_id"].to_numpy()[row],
        tool=best["tool"].to_numpy().astype(np.uint8),
        position=best["position"].to_numpy(),
        gain=best["gain"].to_numpy(),
        p_api=best["p_api"].to_numpy(),
        is_bound=best["l_call"].is_null().to_numpy(),
        call=best["call"].to_numpy(),
    )


def _obeys_rule(
    calls: pa.Table, rows: pa.RecordBatch, tools: Sequence[str], input_rule: Collection[str]
) -> NDArray[np.bool_]:
    obeys = np.ones(calls.num_rows, bool)
    ruled = pa.array([number for number, tool in enumerate(tools) if tool in input_rule], pa.int32())
    concerned = np.flatnonzero(pc.is_in(calls["tool"], value_set=ruled).to_numpy())
    for number, call in zip(concerned, calls.take(concerned).to_pylist(), strict=True):
        text = rows["text"][call["row"]].as_py()
        obeys[number] = not only_after(call["input"], text, call["position"])
    return obeys


_COLUMNS: dict[str, DTypeLike] = {
    "text_id": np.int64,
    "tool": np.uint8,
    "position": np.int64,
    "gain": np.float64,
    "p_api": np.float64,
    "is_bound": np.bool_,
}


class CallSample:
    """All calls that were added, or those of the texts with the lowest hashes that fit `limit` calls."""

    def __init__(self, limit: int = MAX_CALLS) -> None:
        self._limit = limit
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._size = 0
        self._texts = 0  # texts that were added
        self._highest: np.uint64 | None = None  # hash of the last text that fits, once some did not

    def add(self, calls: CallBatch) -> None:
        """Add the calls of a batch; each text comes in one batch alone."""
        self._texts += len(np.unique(calls.row))
        part = {name: getattr(calls, name) for name in _COLUMNS}
        if self._highest is not None:
            fits = hash64(calls.text_id) <= self._highest
            part = {name: values[fits] for name, values in part.items()}
        self._parts.append(part)
        self._size += len(part["text_id"])
        if self._size > 2 * self._limit:
            self._drop_what_does_not_fit()

    def _drop_what_does_not_fit(self) -> None:
        columns = self._columns()
        ids, calls_of = np.unique(columns["text_id"], return_counts=True)
        hashes = hash64(ids)
        order = np.argsort(hashes)
        fitting = max(1, int(np.searchsorted(calls_of[order].cumsum(), self._limit, side="right")))
        if fitting < len(ids):
            self._highest = hashes[order[fitting - 1]]
            fits = hash64(columns["text_id"]) <= self._highest
            columns = {name: values[fits] for name, values in columns.items()}
        self._parts = [columns]
        self._size = len(columns["text_id"])

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {
            name: np.concatenate([np.empty(0, kind), *(part[name] for part in self._parts)])
            for name, kind in _COLUMNS.items()
        }

    def scored_calls(self, tools: Sequence[str], merge: MergeConfig) -> ScoredCalls:
        """The columns, with the choices of a merge with these settings."""
        if self._size > self._limit:
            self._drop_what_does_not_fit()
        columns = self._columns()
        by_text = np.lexsort((columns["tool"], columns["position"], columns["text_id"]))
        columns = {name: values[by_text] for name, values in columns.items()}
        ids, text = np.unique(columns["text_id"], return_inverse=True)
        pairs, pair_of = np.unique(np.stack([text, columns["tool"]]), axis=1, return_inverse=True)
        ranks = np.array(
            [rank(merge.seed, tools[tool], int(ids[number])) for number, tool in pairs.T], np.uint64
        )
        order = np.unique(ranks, return_inverse=True)[1][pair_of]
        return ScoredCalls(
            number=len(text),
            text=_base64(text, "<u4"),
            tool=_base64(columns["tool"], "<u1"),
            position=_base64(columns["position"], "<u4"),
            gain=_base64(columns["gain"], "<f8"),
            order=_base64(order, "<u4"),
            p_api=_base64(columns["p_api"], "<f4"),
            is_bound=_base64(columns["is_bound"], "<u1"),
            texts=len(ids),
            sampled=len(ids) / self._texts if self._texts else 1.0,
            max_examples=merge.max_examples,
            one_call_per_position=merge.one_call_per_position,
            seed=str(merge.seed),
        )


def hash64(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A pseudo-random number for each value, independent of merge's ranks (splitmix64's finaliser)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _base64(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")
