"""The scaling benchmark's arithmetic, and that its stand-in asks and answers as an annotating actor does."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.scaling import CALLS, annotation, busy, calls_of, cpu_load, summary, times_of, write_pages
from pipeline.base.config import CorpusConfig
from pipeline.base.records import Annotation, Document, Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.method.execution import aexecute
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

TEXT = Text(12_345, Document("pages.jsonl#1", None), " ".join(f"word{n}" for n in range(60)))


def test_throughput_is_held_against_that_of_gpus_which_never_wait(tmp_path: Path) -> None:
    """Two actors, three batches of 10 s: ideal are 15 s. They took 22, and 30 with the start. From 101, when
    both had begun, until 113, when one had done its last, each worked for 10 of 12 seconds."""
    times = times_of(tmp_path / "out")
    times.mkdir()
    (times / "1").write_text("100 105 105 110 0\n112 117 117 122 2\n")
    (times / "2").write_text("101 106 108 113 1\n")
    seen = {"wall_s": 30.0, "driver_mib": 300.0, "store_mib": 5.0}
    found = summary(tmp_path / "out", actors=2, seconds=10.0, load=0.5, seen=seen)
    assert (found.batches, found.share_with_start, found.calls_lost) == (3, 0.5, 3)
    assert (found.share, found.steady_s) == (pytest.approx(20 / 24), 12)
    assert found.share_of_batches == pytest.approx(15 / 22)
    assert found.calls_per_s == 3 * 64 * sum(CALLS.values()) / 22
    assert "83.3%" in str(found)


def test_gpus_that_never_worked_side_by_side_have_no_share() -> None:
    assert math.isnan(busy([[(0.0, 5.0)], [(6.0, 9.0)]])[0])
    assert math.isnan(busy([[(0.0, 5.0)], []])[0])


def test_load_is_what_was_not_idle() -> None:
    before, after = SimpleNamespace(idle=100.0, iowait=10.0), SimpleNamespace(idle=104.0, iowait=11.0)
    assert cpu_load(before, after, cores_s=20.0) == 0.75


def test_a_text_has_calls_of_its_own_and_they_are_answered() -> None:
    calls = calls_of(TEXT)
    assert {tool: sum(call.tool == tool for call in calls) for tool in CALLS} == CALLS
    asked = [call for call in calls if call.tool != "WikiSearch"]
    assert len({(call.tool, call.input) for call in asked}) == len(asked)
    other = {call.input for call in calls_of(Text(54_321, TEXT.document, TEXT.text))}
    assert not {call.input for call in asked if call.tool == "Calculator"} & other
    tools = LocalTools.start(ToolsConfig(), ["Calculator", "Calendar"])
    [executed] = asyncio.run(aexecute([asked], ["2019-03-05"], tools))
    assert all(call.result for call in executed)
    made = annotation(TEXT, executed)
    assert Annotation.from_row(made.to_row()) == made
    assert len(made.calls) == len(asked)


def test_every_page_is_one_text(tmp_path: Path) -> None:
    write_pages(tmp_path / "pages", 70)
    config = CorpusConfig(paths=(str(tmp_path / "pages"),))
    texts = list(read_corpus(list_files(config), config, lambda text: len(text) // 3))
    assert len(texts) == len({text.text for text in texts}) == 70
    assert all(text.skipped is None for text in texts)
