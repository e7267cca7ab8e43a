"""What an index has lost, in sentences for the end of the command.

In: the manifest of an index, new or found unchanged. Out: lines of text; none if nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DAMAGED = "damaged file"


def index_losses(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Files that were not read to their end, and lines that gave no article, by reason."""
    skipped: dict[str, int] = dict(manifest.get("skipped", {}))
    skipped.pop("header", None)  # of DPR's passages: nothing is lost
    if damaged := skipped.pop(_DAMAGED, 0):
        files = "1 file was" if damaged == 1 else f"{damaged:,} files were"
        yield f"{files} not read to the end (damaged or cut off; skipped.jsonl names them)"
    if skipped:
        common = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{number:,} x {reason}" for reason, number in common)
        yield (
            f"{sum(skipped.values()):,} of {manifest.get('lines', 0):,} lines gave no article ({shown}); "
            "skipped.jsonl in the index lists them"
        )
