"""What a snapshot of a run that stalls is said to wait for, and when."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotation import stall_watch
from pipeline.annotation.stall import (
    Activity,
    BatchInProgress,
    Reason,
    Snapshot,
    ToolState,
    ToolWait,
    diagnose,
)
from pipeline.annotation.stall_watch import StallWatch, disk_problem
from tools_service.runtime.resources import Node, ProcessRequest

pytestmark = pytest.mark.unit

QA = ToolState("QA", ProcessRequest(of="QA replica", cpus=0.1, gpus=0.5, fewer_gpus="lower qa.gpus"), 1, 1)
BATCH = BatchInProgress(12, 75, 64, 90.0)
WORKING = Activity(done=640, total=None, read=2, to_read=9, ready=2)


def snapshot(activity: Activity = WORKING, **changes: Any) -> Snapshot:
    """A run of two actors on GPUs, with one free GPU."""
    usual = Snapshot(
        stalled_s=60.0,
        activity=activity,
        actors=2,
        annotator=ProcessRequest(
            of="annotating actor", cpus=1, gpus=1, count=2, fewer_gpus="lower ray.gpus_per_actor"
        ),
        reader=ProcessRequest(of="reading task", cpus=0.1),
        tools=(QA,),
        free=(Node("a", 2, 0), Node("b", 1, 1)),
    )
    return replace(usual, **changes)


NO_ACTOR = replace(WORKING, done=0, ready=0)
ALL_READ = replace(WORKING, done=640, total=700, read=9)
CASES: list[tuple[Snapshot, Reason, tuple[str, ...]]] = [
    (snapshot(disk="the disk of out is full"), "disk", ("the disk of out is full",)),
    (
        snapshot(tools=(replace(QA, running=0),), free=(Node("a", 2, 0.25),)),
        "tool has no room",
        ("QA has 0 of 1 replicas", "0.1 CPUs and 0.5 GPUs", "a has 0.25 GPUs free", "lower qa.gpus"),
    ),
    (
        snapshot(tools=(replace(QA, running=0, message="it\n is installed"),)),
        "tool starts",
        ("QA has 0 of 1 replicas", "(it is installed)"),
    ),
    (
        snapshot(replace(WORKING, batches=(BATCH,), waits=(ToolWait("QA", 7, 9.0), ToolWait("QA", 2, 40.0)))),
        "tool does not answer",
        ("tool QA: 9 calls", "for 40 s", "1 of 1 replicas"),
    ),
    (
        snapshot(NO_ACTOR, free=(Node("a", 2, 0), Node("b", 0.5, 0))),
        "actors have no room",
        ("2 of 2 annotating actors", "1 CPU and 1 GPU", "a has 0 GPUs free", "lower ray.gpus_per_actor"),
    ),
    (snapshot(NO_ACTOR), "actors start", ("none of 2 annotating actors",)),
    (
        snapshot(replace(NO_ACTOR, loading=(240.0, 55.0))),
        "model loads",
        ("2 of 2 annotating actors load the model, for 240 s",),
    ),
    (
        snapshot(replace(NO_ACTOR, loading=(61.0,)), free=(Node("a", 2, 0),)),
        "model loads",
        ("1 of 2", "for 61 s", "1 of 2 annotating actors wait for 1 CPU and 1 GPU", "0 GPUs free"),
    ),
    (
        snapshot(replace(WORKING, batches=(BATCH, replace(BATCH, seconds=3.0)))),
        "batch takes long",
        ("2 batches are in progress", "texts 12 to 75", "for 90 s"),
    ),
    (
        snapshot(replace(ALL_READ, batches=(BATCH,))),
        "batch takes long",
        ("1 batch is", "texts 12 to 75", "1 of 2 actors are idle", "nothing is left to read"),
    ),
    (
        snapshot(free=(Node("a", 0.05, 0), Node("b", 0, 1))),
        "reading has no room",
        ("0.1 CPUs on one node", "0.05 CPUs free", "2 of 9 groups", "ray.cpus_per_actor"),
    ),
    (snapshot(), "reading is slow", ("2 annotating actors are idle", "2 of 9 groups")),
    (snapshot(ALL_READ), "batches do not arrive", ("last 60 texts", "the same command resumes")),
    (snapshot(replace(ALL_READ, done=700)), "end does not come", ("all texts are done",)),
]


@pytest.mark.parametrize(("situation", "reason", "words"), CASES)
def test_situations(situation: Snapshot, reason: Reason, words: tuple[str, ...]) -> None:
    diagnosis = diagnose(situation)
    assert diagnosis.reason == reason
    for word in words:
        assert word in diagnosis.sentence
    assert "\n" not in diagnosis.sentence


def test_a_short_wait_for_a_tool_is_not_blamed_while_the_model_works() -> None:
    activity = replace(WORKING, batches=(BATCH, BATCH), waits=(ToolWait("QA", 7, 9.0),))
    assert diagnose(snapshot(activity)).reason == "batch takes long"
    long = replace(activity, waits=(ToolWait("QA", 7, 31.0),))
    assert diagnose(snapshot(long)).reason == "tool does not answer"


class Run:
    """A run whose texts, state and clock a test sets."""

    def __init__(self, situation: Snapshot, after_s: float = 60.0) -> None:
        self.done, self.now, self.situation = 0, 0.0, situation
        self.shown: list[str | None] = []
        self.watch = StallWatch(lambda: self.done, self.take, self.shown.append, after_s, lambda: self.now)

    def take(self, stalled_s: float) -> Snapshot:
        return replace(self.situation, stalled_s=stalled_s)

    def until(self, end: int) -> None:
        """A look every five seconds."""
        while self.now < end:
            self.now += 5.0
            self.watch.look()


def seconds_said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(":")[0] for record in caplog.records]


def test_a_stall_is_named_at_growing_intervals_until_texts_are_done(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(snapshot(NO_ACTOR))
    run.until(505)
    assert seconds_said(caplog) == [f"no text was done for {number} s" for number in (60, 120, 240, 480)]
    assert run.shown == ["actors start"] * 4
    run.done = 64
    run.until(510)
    assert caplog.records[-1].getMessage() == "texts are done again, after 505 s"
    assert run.shown[-1] is None
    assert run.watch.diagnosis is None


def test_another_reason_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(snapshot(NO_ACTOR))
    run.until(245)
    run.situation = snapshot(replace(NO_ACTOR, loading=(20.0,)))
    run.until(305)
    assert seconds_said(caplog)[-2:] == ["no text was done for 240 s", "no text was done for 300 s"]
    assert run.shown[-1] == "model loads"


def test_batches_that_always_take_long_are_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(snapshot(replace(WORKING, batches=(BATCH,))))
    for end in range(100, 1000, 100):  # each batch takes 100 s
        run.until(end)
        run.done += 64
    assert sum("no text was done" in record.getMessage() for record in caplog.records) == 1
    run.until(1300)
    assert "no text was done for 240 s" in seconds_said(caplog)


def test_batches_that_began_a_moment_ago_are_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    """The tools took long to start; the first batches have just begun."""
    run = Run(snapshot(replace(WORKING, batches=(replace(BATCH, seconds=2.0),))))
    run.until(130)
    assert not caplog.records
    run.situation = snapshot(replace(WORKING, batches=(BATCH,)))
    run.until(190)
    assert seconds_said(caplog) == ["no text was done for 180 s"]


def test_a_failure_of_the_watch_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(snapshot())
    run.until(20)

    def broken(stalled_s: float) -> Snapshot:
        raise RuntimeError("no answer")

    run.take = broken  # type: ignore[method-assign]
    run.watch = StallWatch(lambda: 0, broken, run.shown.append, 60.0, lambda: run.now)
    with caplog.at_level(logging.DEBUG):
        run.until(200)
    assert "cannot be read" in caplog.text
    assert not run.shown


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_problem(tmp_path) is None
    monkeypatch.setattr(stall_watch, "_MIN_FREE_BYTES", 2**60)
    assert "is full" in str(disk_problem(tmp_path))
    assert disk_problem(tmp_path / "missing") is None
