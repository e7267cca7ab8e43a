"""Texts of C* without a call: a share of plain text beside the texts with calls.

In: annotation folders, the texts with a kept call, and a share. Out: rows of C* whose text is the plain one.
The choice depends on the seed and on the texts alone. Memory grows with the texts chosen, not with the
corpus.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.method.merging import rank
from pipeline.storage.row_files import Ids, read_batches

_SELECTABLE = pa.array(["annotated", "no_calls"])  # neither skipped nor failed
_NO_TOOL = "no tool"  # no tool has a space in its name: the ranks are none of a tool's


def plain_texts_for(share: float, with_calls: int) -> int:
    """How many texts without a call are `share` of C*, beside `with_calls` texts with one."""
    return round(with_calls * share / (1.0 - share))


def plain_texts(folders: Sequence[Path], have_calls: Ids, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """`number` rows of C* from the annotated texts that are not in `have_calls` (ids, sorted), or as many as
    there are."""
    lowest: list[tuple[int, int, str]] = []  # a heap whose first element has the highest rank; ranks negated
    chosen: set[int] = set()  # a text that several annotations hold is chosen once
    for folder in folders if number else ():
        for batch in read_batches(folder, ["text_id", "text", "status"]):
            ids = batch["text_id"].to_numpy()
            selectable = pc.is_in(batch["status"], _SELECTABLE).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(selectable & ~_are_in(ids, have_calls)).tolist():
                text_id = int(ids[row])
                key = -rank(seed, _NO_TOOL, text_id)
                if text_id in chosen or (len(lowest) == number and key < lowest[0][0]):
                    continue
                chosen.add(text_id)
                heapq.heappush(lowest, (key, text_id, batch["text"][row].as_py()))
                if len(lowest) > number:
                    chosen.remove(heapq.heappop(lowest)[1])
    for _, text_id, text in lowest:
        yield {"text_id": text_id, "text": text, "plain": text, "tool_names": []}


def _are_in(ids: Ids, known: Ids) -> NDArray[np.bool_]:
    """Which of the ids are among `known`, which is sorted."""
    place = np.searchsorted(known, ids)
    found = np.zeros(len(ids), bool)
    inside = place < len(known)
    found[inside] = known[place[inside]] == ids[inside]
    return found
