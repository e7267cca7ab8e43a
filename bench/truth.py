"""How many of the kept calls of a demo run are the right call at the right place.

    python -m bench.truth --annotations runs/demo/annotations

The generator of the demo's pages knows where a perfect annotator would call a tool, and with which
input. The pipeline does not use any of that; this script holds what it kept (gain >= tau_f) against it,
after the fact. Out: a line for each tool with the number of kept calls and the shares that stand at a
right place, and that are the right call there: the generator's input, or for QA, where a question can be
worded in many ways, the generator's answer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from demo import generate
from demo.pages import Marked
from pipeline.base.config import MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation
from pipeline.method.filtering import kept
from pipeline.storage.row_files import read_rows


def compare(
    annotations: Iterable[Annotation], truth: dict[str, Marked], method: MethodConfig
) -> Counter[tuple[str, str]]:
    """Counts by (tool, what): "kept" calls, those in their "place", those that are "right" there.

    A text is a page or a passage of one; a page's calls are found by the passage's place in it.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for annotation in annotations:
        text = annotation.text.text
        page = truth.get(text) or next(made for whole, made in truth.items() if text in whole)
        shift = page.text.index(text)
        gold = {(call.tool, call.position - shift): call for call in page.calls}
        for call in annotation.calls:
            if not kept(call, method.of(call.tool).tau_f):
                continue
            counts[call.tool, "kept"] += 1
            wanted = gold.get((call.tool, call.position))
            counts[call.tool, "place"] += wanted is not None
            counts[call.tool, "right"] += wanted is not None and (
                call.input == wanted.input or (call.tool == "QA" and call.result == wanted.result)
            )
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Hold the demo's kept calls against the generator's truth.")
    parser.add_argument("--annotations", type=Path, default=Path("runs/demo/annotations"))
    folder = parser.parse_args().annotations
    rows = (Annotation.from_row(row) for row in read_rows(folder, ANNOTATION_SCHEMA.names))
    counts = compare(rows, generate.truth(), MethodConfig())
    for tool in sorted({tool for tool, _ in counts}):
        total = counts[tool, "kept"]
        place, right = (100 * counts[tool, what] / total for what in ("place", "right"))
        print(f"{tool}: {total} kept, {place:.1f} % at a right place, {right:.1f} % the right call there")


if __name__ == "__main__":
    main()
