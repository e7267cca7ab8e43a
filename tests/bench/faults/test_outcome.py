"""What makes a round fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.faults.outcome import Round, compare, leftovers

pytestmark = pytest.mark.unit

EXPECTED = {1: "a", 2: "b", 3: "c"}
NOTHING = {"missing": 0, "twice": 0, "different": 0}


@pytest.mark.parametrize(
    ("found", "differences"),
    [
        ([(1, "a"), (2, "b"), (3, "c")], {}),
        ([(3, "c"), (1, "a"), (2, "b")], {}),
        ([(1, "a"), (3, "c")], {"missing": 1}),
        ([], {"missing": 3}),
        ([(1, "a"), (2, "b"), (2, "b"), (3, "c")], {"twice": 1}),
        ([(1, "a"), (2, "b"), (3, "d")], {"different": 1}),
        ([(1, "a"), (2, "b"), (4, "c")], {"missing": 1, "different": 1}),
        ([(1, "a"), (1, "b"), (1, "c")], {"missing": 2, "twice": 2, "different": 2}),
    ],
)
def test_rows_are_counted(found: list[tuple[int, str]], differences: dict[str, int]) -> None:
    assert compare(found, EXPECTED) == NOTHING | differences


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ({}, True),
        ({"missing": 1}, False),
        ({"twice": 1}, False),
        ({"different": 1}, False),
        ({"problems": ["left behind: x.part"]}, False),
        ({"again": 8}, True),
        ({"again": 9}, False),
        ({"begun_again": 16}, True),
        ({"begun_again": 17}, False),
    ],
)
def test_a_round_passes_only_without_differences(values: dict[str, Any], passed: bool) -> None:
    rest = {"kind": "actor", "moment": "", "starts": 1, "seconds": 1.0, "allowed": 8, "allowed_begun": 16}
    assert Round(**rest | NOTHING | values).passed is passed


@pytest.mark.parametrize(
    ("name", "is_left"),
    [
        ("out/rows/1.parquet", False),
        ("out/rows/1.parquet.0af.part", True),
        ("out/manifest.json.part", True),
        (".out.0123abcd.part/rows", True),
        (".out.0123abcd.old", True),
        ("out/checkpoints/run.json", True),
        ("out/logs/host-12.jsonl", False),
        ("out/.lock", False),
    ],
)
def test_what_an_undisturbed_run_does_not_have_is_left_behind(
    tmp_path: Path, name: str, is_left: bool
) -> None:
    undisturbed, round_ = tmp_path / "undisturbed", tmp_path / "round"
    for folder, path in ((undisturbed, "out/rows/1.parquet"), (round_, name)):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    assert any(name in problem for problem in leftovers(round_, undisturbed)) is is_left
