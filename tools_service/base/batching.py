"""Batches of sequences of similar length, so that little is spent on padding.

In: the lengths of the sequences. Out: their indices, batch by batch, the longest first: a batch
that does not fit into memory fails at the start of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batch_by_length(
    lengths: Sequence[int], *, max_rows: int | None = None, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield indices into `lengths`, in batches of at most `max_rows` rows and `max_tokens` tokens.

    Tokens include padding. A sequence that is longer than `max_tokens` is a batch of its own.
    """
    pending = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while pending:
        rows = max_rows or len(pending)
        if max_tokens:
            longest = max(1, lengths[pending[0]])
            rows = min(rows, max(1, max_tokens // longest))
        yield pending[:rows]
        pending = pending[rows:]
