"""README's examples are found, run and compared, and its picture stands alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.readme import IMAGES, README, Example, differences, examples, picture
from cluster.submit import ROOT
from pipeline.cli.recipes import demo
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult
from pipeline.report.demo_summary import verdict


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_examples_print_what_is_shown_after_the_demo() -> None:
    page = (ROOT / README).read_text(encoding="utf-8")
    found = Evaluation.read(ROOT / demo().evaluate.output)
    if verdict(found) not in " ".join(page.split()):
        pytest.skip(
            "needs the outputs of `make demo`; python -m bench.readme compares those of another version"
        )
    assert not [changes for example in examples(page) if (changes := differences(example, ROOT))]


@pytest.mark.unit
def test_examples_are_read_from_indented_blocks() -> None:
    page = "text\n\n    $ one\n    1\n    2\n    $ two\n\n$ none\n\n    $ three\n    3"
    assert examples(page) == [Example("one", "1\n2"), Example("two", ""), Example("three", "3")]


@pytest.mark.unit
def test_another_output_is_a_difference(tmp_path: Path) -> None:
    assert not differences(Example("echo 1; echo 2", "1\n2"), tmp_path)
    assert "+2" in differences(Example("echo 1; echo 2", "1\n3"), tmp_path)
    assert "+exit code 3" in differences(Example("exit 3", ""), tmp_path)
    assert not differences(Example("python -c 'print(1)'", "1"), tmp_path)  # of this environment


@pytest.mark.unit
def test_the_picture_needs_no_other_file() -> None:
    result = BenchmarkResult(accuracy=0.5, n=10, calls=5, calls_by_tool={}, failed_calls={})
    model = ModelResult(model="m", k=10, disabled=False, tools_off=(), benchmarks={"sums": result})
    svg = picture(Evaluation(models={"toolformer": model}), ["One and one are [Calculator(1+1) -> 2] 2."])
    assert "Calculator(1+1)" in svg.replace("&#160;", " ")
    assert "5&#160;of&#160;10&#160;questions" in svg
    for text in (svg, (ROOT / IMAGES / "demo.svg").read_text(encoding="utf-8")):
        assert not re.search(r"url\((?!#)|href|@import", text)
        assert len(text) < 40_000
