"""How many of a demo run's kept calls are the correct call at a correct position.

    python -m bench.truth --annotations runs/demo/annotations

The generator of the demo's pages knows where a perfect annotator would call a tool, and with which
input. The pipeline never uses this ground truth. Here the kept calls (gain >= tau_f) are compared
with it. Out: a line per tool with the number of kept calls, the share at a correct position, and
the share that is the correct call there. Correct is the generator's input; for QA, where a question
has many wordings, the generator's answer is enough.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from demo import generate
from demo.pages import MarkedPage
from pipeline.base.config import MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation
from pipeline.method.filtering import kept
from pipeline.storage.row_files import read_rows


def compare(
    annotations: Iterable[Annotation], truth: dict[str, MarkedPage], method: MethodConfig
) -> Counter[tuple[str, str]]:
    """Counts by (tool, what): "kept" calls, those at a correct "place", those that are "right"
    there.

    A text is a page or a passage of one. The calls of a passage are those of its page, shifted.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for annotation in annotations:
        text = annotation.text.text
        page = truth.get(text) or next(page for page in truth.values() if text in page.text)
        shift = page.text.index(text)
        gold = {(call.tool, call.position - shift): call for call in page.calls}
        for call in annotation.calls:
            if not kept(call, method.of(call.tool).tau_f):
                continue
            counts[call.tool, "kept"] += 1
            expected = gold.get((call.tool, call.position))
            counts[call.tool, "place"] += expected is not None
            counts[call.tool, "right"] += expected is not None and (
                call.input == expected.input or (call.tool == "QA" and call.result == expected.result)
            )
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare the demo's kept calls with the ground truth.")
    parser.add_argument("--annotations", type=Path, default=Path("runs/demo/annotations"))
    folder = parser.parse_args().annotations
    rows = (Annotation.from_row(row) for row in read_rows(folder, ANNOTATION_SCHEMA.names))
    counts = compare(rows, generate.ground_truth(), MethodConfig())
    for tool in sorted({tool for tool, _ in counts}):
        total = counts[tool, "kept"]
        place, right = (100 * counts[tool, what] / total for what in ("place", "right"))
        print(f"{tool}: {total} kept, {place:.1f} % at a right place, {right:.1f} % the right call there")


if __name__ == "__main__":
    main()
