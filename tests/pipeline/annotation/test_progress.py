"""How many texts a run expects."""

from __future__ import annotations

import logging
import warnings
from collections import Counter

import pytest

from pipeline.annotation import progress as progress_module
from pipeline.annotation.actor_reports import ActorReport
from pipeline.annotation.isolation import FailureBudget
from pipeline.annotation.metrics import DONE, FAILURE_BUDGET_USED, STALLED, TEXTS
from pipeline.annotation.progress import ProgressActor
from pipeline.annotation.run import _silence_ray
from pipeline.annotation.stall import ToolWait
from pipeline.runtime.metrics import Recorder, Sample
from pipeline.storage.expected_texts import ExpectedTexts

pytestmark = pytest.mark.unit


def test_unread_files_are_expected_to_be_like_those_that_are_read() -> None:
    progress = ProgressActor(4, 0, FailureBudget(1.0), "a test")
    assert progress.expected() is None
    progress.reading("a", 5, 0.25)
    assert progress.expected() == ExpectedTexts(texts=80, is_estimate=True)
    progress.read("a", 10)
    progress.reading("a", 5, 0.25)  # late
    assert progress.expected() == ExpectedTexts(texts=40, is_estimate=True)
    progress.read("b", 30)
    progress.read("b", 30)  # a repeated task
    assert progress.expected() == ExpectedTexts(texts=80, is_estimate=True)
    progress.read("c", 5)
    progress.read("d", 0)
    assert progress.expected() == ExpectedTexts(texts=45, is_estimate=False)
    assert progress.done_and_total() == (0, 45)


def test_no_fewer_texts_are_expected_than_are_done() -> None:
    """A resumed run has read little, and knows many rows."""
    progress = ProgressActor(2, 50, FailureBudget(1.0), "a test")
    progress.reading("a", 5, 0.5)
    assert progress.expected() == ExpectedTexts(texts=50, is_estimate=True)
    progress.read("a", 10)
    progress.read("b", 10)
    assert progress.expected() == ExpectedTexts(texts=20, is_estimate=False)


def test_starts_on_nodes_that_have_gone_are_no_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is begun on three nodes: the first is lost, on the second its process died."""
    dead: set[str] = set()
    monkeypatch.setattr(progress_module, "_dead_nodes", lambda: dead)
    progress = ProgressActor(1, 0, FailureBudget(1.0), "a test")
    assert progress.begin((1, 2), "first") == 0
    dead.add("first")
    assert progress.begin((1, 2), "second") == 0
    assert progress.begin((1, 2), "third") == 1
    progress.end((1, 2))
    assert progress.begin((1, 2), "third") == 0


def test_three_nodes_that_are_lost_with_one_batch_are_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_dead_nodes", lambda: set("abcdef"))
    progress = ProgressActor(1, 0, FailureBudget(1.0), "a test")
    assert [progress.begin((1, 2), node) for node in "abcdefg"] == [0, 0, 0, 1, 1, 1, 2]


def test_a_stopped_run_is_drained_when_its_living_actors_have_written_their_batches() -> None:
    progress = ProgressActor(1, 0, FailureBudget(1.0), "a test")
    progress.report(ActorReport("alive", 1.0, ready=True, texts=4.0))
    assert progress.begin_batch((1,), "alive")
    assert progress.begin_batch((2,), "lost with its node")
    assert not progress.is_drained()
    progress.stop()
    state = progress.progress()
    assert (state.batches, state.refused, state.begun, state.ready) == (1, False, 4.0, 1)
    assert not progress.begin_batch((3,), "alive")
    assert not progress.is_drained()
    progress.end_batch((1,))
    assert progress.is_drained()
    assert progress.progress().refused


def test_texts_that_no_tool_is_tried_on_are_done_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Sample] = []
    monkeypatch.setattr(Recorder, "record", lambda _, samples: recorded.extend(samples))
    progress = ProgressActor(1, 5, FailureBudget(1.0), "a test")
    progress.unselected(Counter({("no_calls", ""): 2, ("skipped", "not JSON"): 1}))
    assert progress.done_and_total() == (8, None)
    assert (TEXTS, ("no_calls", ""), 2.0) in recorded
    assert (TEXTS, ("skipped", "not JSON"), 1.0) in recorded
    assert [number for metric, _, number in recorded if metric == DONE] == [5.0, 8.0]


def test_the_used_share_of_the_failure_budget_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Sample] = []
    monkeypatch.setattr(Recorder, "record", lambda _, samples: recorded.extend(samples))
    progress = ProgressActor(1, 0, FailureBudget(0.01), "a test")
    progress.annotated(8, [(7, "ToolError: no")])
    assert [number for metric, _, number in recorded if metric == FAILURE_BUDGET_USED] == [0.0, 0.1]


def test_rays_advice_on_small_corpora_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray.data", "ray.serve"):
        for handler in logging.getLogger(name).handlers:  # pytest's own are among them
            monkeypatch.setattr(handler, "level", handler.level)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        _silence_ray()
        warnings.warn("The minimum number of concurrent actors for 'MapBatches' is set to 2", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]


def test_activity_is_that_of_processes_that_are_there() -> None:
    progress = ProgressActor(3, 10, FailureBudget(1.0), "a test")
    wait = ToolWait("QA", 7, 9.0)
    progress.report(ActorReport("ready", 1.0, ready=True, waits=(wait,)))
    progress.report(ActorReport("loading", 1.0, age_s=61.0))
    progress.begin_batch((4, 5, 6), "ready")
    progress.begin_batch((7, 8), "lost with its node")
    progress.read("a", 30)
    activity = progress.activity()
    assert (activity.done, activity.total, activity.read, activity.to_read) == (10, None, 1, 3)
    assert (activity.loading, activity.ready, activity.waits) == ((61.0,), 1, (wait,))
    [batch] = activity.batches
    assert (batch.first, batch.last, batch.texts) == (4, 6, 3)
    progress.end_batch((4, 5, 6))
    assert progress.activity().batches == ()


def test_the_metric_of_a_stall_has_one_reason_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Sample] = []
    monkeypatch.setattr(Recorder, "record", lambda _, samples: recorded.extend(samples))
    progress = ProgressActor(1, 0, FailureBudget(1.0), "a test")
    for reason in ("model loads", "model loads", "disk", None):
        progress.stalls(reason)
    assert [(labels, number) for metric, labels, number in recorded if metric == STALLED] == [
        (("model loads",), 1.0),
        (("model loads",), 1.0),
        (("model loads",), 0.0),
        (("disk",), 1.0),
        (("disk",), 0.0),
    ]
