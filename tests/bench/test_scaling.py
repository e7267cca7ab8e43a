"""The scaling benchmark's arithmetic, and that its simulated actor calls tools like a real one."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.scaling import busy_share, cpu_load, summary
from bench.simulated_gpus import CALLS, annotation, calls_of, times_folder, write_pages
from pipeline.base.config import CorpusConfig
from pipeline.base.records import Annotation, Document, Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.method.execution import execute
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

TEXT = Text(12_345, Document("pages.jsonl#1", None), " ".join(f"word{n}" for n in range(60)))


def test_throughput_is_a_share_of_that_of_gpus_that_never_wait(tmp_path: Path) -> None:
    """Two actors, three batches of 10 s: the ideal is 15 s. They took 22 s, with the start 30 s.

    Both had work from 101, when the second one started, until 113, when it ended its last batch. In
    these 12 seconds each worked for 10.
    """
    times = times_folder(tmp_path / "out")
    times.mkdir()
    (times / "1").write_text("100 105 105 110 0\n112 117 117 122 2\n")
    (times / "2").write_text("101 106 108 113 1\n")
    reported = {"wall_s": 30.0, "driver_mib": 300.0, "store_mib": 5.0}
    run = summary(tmp_path / "out", actors=2, seconds=10.0, load=0.5, reported=reported)
    assert (run.batches, run.share_with_start, run.calls_lost) == (3, 0.5, 3)
    assert (run.share, run.steady_s) == (pytest.approx(20 / 24), 12)
    assert run.share_of_batches == pytest.approx(15 / 22)
    assert run.calls_per_s == 3 * 64 * sum(CALLS.values()) / 22
    assert "83.3%" in str(run)


def test_gpus_that_never_worked_at_the_same_time_have_no_share() -> None:
    assert math.isnan(busy_share([[(0.0, 5.0)], [(6.0, 9.0)]])[0])
    assert math.isnan(busy_share([[(0.0, 5.0)], []])[0])


def test_load_is_the_time_that_was_not_idle() -> None:
    before, after = SimpleNamespace(idle=100.0, iowait=10.0), SimpleNamespace(idle=104.0, iowait=11.0)
    assert cpu_load(before, after, cores_s=20.0) == 0.75


def test_every_text_has_its_own_calls_and_they_get_results() -> None:
    calls = calls_of(TEXT)
    assert {tool: sum(call.tool == tool for call in calls) for tool in CALLS} == CALLS
    executable = [call for call in calls if call.tool != "WikiSearch"]
    assert len({(call.tool, call.input) for call in executable}) == len(executable)
    other = {call.input for call in calls_of(Text(54_321, TEXT.document, TEXT.text))}
    assert not {call.input for call in executable if call.tool == "Calculator"} & other
    tools = LocalTools.start(ToolsConfig(), ["Calculator", "Calendar"])
    [executed] = asyncio.run(execute([executable], ["2019-03-05"], tools))
    assert all(call.result for call in executed)
    row = annotation(TEXT, executed)
    assert Annotation.from_row(row.to_row()) == row
    assert len(row.calls) == len(executable)


def test_every_page_is_one_text(tmp_path: Path) -> None:
    write_pages(tmp_path / "pages", 70)
    config = CorpusConfig(paths=(str(tmp_path / "pages"),))
    texts = list(read_corpus(list_files(config), config, lambda text: len(text) // 3))
    assert len(texts) == len({text.text for text in texts}) == 70
    assert all(text.skipped is None for text in texts)
