"""Counts by threshold are those of merge."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.analysis.result_table import DASH
from pipeline.analysis.thresholds import examples_by_threshold, thresholds_table
from pipeline.augmentation.merge import merge
from pipeline.base.analysis_config import ThresholdsConfig
from pipeline.base.config import MergeConfig, MethodConfig
from pipeline.base.records import Annotation
from pipeline.storage.manifest import ManifestError
from tests.pipeline.augmentation.test_merge import annotated, annotations, call
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit

LIMITS = (0.5, 1.0, 1.5, 2.0)
ZERO = MethodConfig()
for _tool in ZERO.tools:
    ZERO = ZERO.with_section(_tool, ZERO.of(_tool).model_copy(update={"tau_f": 0.5}))


def random_annotations(seed: int, texts: int = 60) -> list[Annotation]:
    """Texts with several calls, also several tools at one position and several calls of one tool there."""
    draw = random.Random(seed)
    found = []
    for number in range(texts):
        calls = {
            (tool, position, argument): call(
                tool, position, draw.choice((0.25, 0.5, 0.75, 1.0, 1.25, 2.0, 2.5)), argument
            )
            for tool in PACKAGED
            for position in (4, 9)
            for argument in ("1", "2")
            if draw.random() < 0.2
        }
        found.append(annotated(number, f"one two three four {number}", *calls.values()))
    return found


@pytest.mark.parametrize("cap", [None, 5])
@pytest.mark.parametrize("one_per_position", [False, True])
def test_the_counts_are_those_of_merge(cap: int | None, one_per_position: bool, tmp_path: Path) -> None:
    folder = annotations(tmp_path / "annotations", random_annotations(1), method=ZERO)
    config = ThresholdsConfig(
        annotations=(folder,), tau_f=LIMITS, max_examples=cap, one_call_per_position=one_per_position, seed=3
    )
    counts = examples_by_threshold(config)
    assert list(counts) == list(LIMITS)
    for tau_f in LIMITS:
        merged = merge(
            MergeConfig(
                annotations=(folder,),
                output=tmp_path / "augmented",
                tau_f=dict.fromkeys(PACKAGED, tau_f),
                max_examples=cap or 2**31 - 1,
                one_call_per_position=one_per_position,
                seed=3,
            )
        )
        assert counts[tau_f] == {tool: examples.examples for tool, examples in merged.tools.items()}
    if cap is None:
        assert sum(filter(None, counts[0.5].values())) > sum(filter(None, counts[2.0].values())) > 0


def test_below_the_annotations_threshold_is_a_dash(tmp_path: Path) -> None:
    folder = annotations(
        tmp_path / "a",
        [
            annotated(1, "one two three", call("QA", 4, 1.5), call("Calculator", 4, 0.75)),
            annotated(2, "four five six", call("QA", 5, 1.0)),
        ],
    )
    counts = examples_by_threshold(ThresholdsConfig(annotations=(folder,)))
    assert (counts[0.5]["QA"], counts[1.0]["QA"], counts[2.0]["QA"]) == (None, 2, 0)
    assert (counts[0.5]["Calculator"], counts[1.0]["Calculator"]) == (1, 0)
    table = thresholds_table(counts)
    assert [name for _, name in table.columns][:3] == ["QA", "WikiSearch", "Calculator"]
    assert [row.titles[0] for row in table.rows] == ["0.5", "1", "2", "0.5 (paper)", "1 (paper)", "2 (paper)"]
    assert [cell.shown for cell in table.rows[0].cells][:3] == [DASH, DASH, "1"]
    assert [cell.shown for cell in table.rows[3].cells][:2] == ["51,987", "207,241"]
    assert "annotate again" in table.notes[0]
    assert len(thresholds_table(counts, paper=False).rows) == 3


def test_unfinished_annotations_are_refused(tmp_path: Path) -> None:
    folder = annotations(tmp_path / "a", random_annotations(2, 3), state="unfinished")
    with pytest.raises(ManifestError):
        examples_by_threshold(ThresholdsConfig(annotations=(folder,)))
