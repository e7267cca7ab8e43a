"""One and two rounds side by side: equal calls count once, and what round 1 does better is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import rounds
from bench.truth import compare
from demo.pages import MarkedPage, mark
from pipeline.base.config import MergeConfig, MethodConfig
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult, PairedTest
from tests.pipeline.augmentation.test_merge import annotated, annotations, call

pytestmark = pytest.mark.unit

PAGE = MarkedPage.parse("One had 1 and 2. It has" + mark("Calculator", "1 + 2", "3") + " 3 eggs.")
PLACE = PAGE.calls[0].position


def test_calls_of_both_rounds_are_counted_once(tmp_path: Path) -> None:
    right, other = (call("Calculator", PLACE, 0.9, argument) for argument in ("1 + 2", "2 + 1"))
    first = annotations(tmp_path / "a", [annotated(1, PAGE.text, right)])
    second = annotations(tmp_path / "b", [annotated(1, PAGE.text, right, other, call("Calculator", 0, 0.6))])
    truth, method = {PAGE.text: PAGE}, MethodConfig()

    def counted(*folders: Path, merged: bool) -> tuple[int, int]:
        counts = compare(rounds.annotations(folders, MergeConfig(), merged=merged), truth, method)
        return counts["Calculator", "kept"], counts["Calculator", "right"]

    assert counted(first, merged=False) == (1, 1)
    assert counted(first, second, merged=False) == (3, 1)
    assert counted(first, second, merged=True) == (2, 1)  # one call at a position


def test_a_round_without_prompts_has_a_folder_of_its_own() -> None:
    with_prompts, without = (rounds.rounds(Path("runs/demo"), prompts=one)[1] for one in (True, False))
    assert with_prompts.annotate.output == Path("runs/demo/round-2/annotations")
    assert without.annotate.output == Path("runs/demo/without-prompts/round-2/annotations")
    assert (with_prompts.annotate.method.use_prompts, without.annotate.method.use_prompts) == (True, False)
    assert without.annotate.model.path == "runs/demo/model"
    assert without.merge.annotations[0] == Path("runs/demo/annotations")


def test_only_a_significant_difference_is_a_loss() -> None:
    def model(paired: dict[str, PairedTest | None]) -> ModelResult:
        benchmarks = {
            name: BenchmarkResult(
                accuracy=0.5,
                n=100,
                calls=1,
                calls_by_tool={},
                failed_calls={},
                interval=(0.4, 0.6),
                paired=test,
            )
            for name, test in paired.items()
        }
        return ModelResult(
            model="m", k=1, disabled=False, tools_off=(), benchmarks=benchmarks, perplexity=3.0
        )

    tests = {
        "better": PairedTest(b=20, c=2, p=0.001),
        "worse": PairedTest(b=2, c=20, p=0.001),
        "by chance": PairedTest(b=2, c=5, p=0.4),
    }
    first = model(dict.fromkeys(tests))
    evaluation = Evaluation(models={"round-1": first, "round-2": model({**tests})})
    assert rounds.lost(evaluation) == ["worse"]
    lines = list(rounds.accuracy_table(evaluation))
    assert "| worse | 50 (40–60) | 50 (40–60) | 0.001 |" in lines
    assert "| perplexity | 3.000 | 3.000 |  |" in lines
