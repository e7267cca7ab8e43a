"""Reports of actors: GPU-hours, who is there, and the share of batches; on a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.annotation import actor_reports
from pipeline.annotation.actor_reports import ActorReport, ActorReports, GpuMeter, Reporter

pytestmark = pytest.mark.unit


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_gpus_count_from_a_holder_s_first_report_to_its_last() -> None:
    """One holds 2 GPUs for 30 s, the other half a GPU for 20 s and is not heard of again: 70 GPU-seconds."""
    clock = Clock()
    meter = GpuMeter(clock)
    meter.add("a", 2.0)
    clock.now += 10
    meter.add("a", 2.0)
    meter.add("b", 0.5)
    clock.now += 20
    meter.add("a", 2.0)
    meter.add("b", 0.5)
    assert meter.gpu_s == 2 * 30 + 0.5 * 20
    clock.now += 3_600
    assert meter.gpu_s == 70
    assert meter.lately() == set()


def test_a_process_that_no_longer_reports_has_gone() -> None:
    clock = Clock()
    reports = ActorReports(clock)
    reports.add(ActorReport("a", 1.0))
    reports.add(ActorReport("b", 1.0, texts=3.5))
    clock.now += 25
    reports.add(ActorReport("a", 1.0, ready=True, texts=1.0))
    assert set(reports.alive()) == {"a", "b"}
    clock.now += 10
    assert reports.alive() == {"a": ActorReport("a", 1.0, ready=True, texts=1.0)}


def test_a_process_reports_the_shares_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[ActorReport] = []
    progress = SimpleNamespace(report=SimpleNamespace(remote=sent.append))
    monkeypatch.setattr(actor_reports, "_INTERVAL_S", 3_600)
    reporter = Reporter(progress, gpus=0.5)
    reporter.ready()
    with reporter.batch(64) as first, reporter.batch(8) as second:
        first(0.25)
        second(0.5)
        reporter._send()
    assert [report.ready for report in sent] == [False, True, True, True, True]
    assert [report.texts for report in sent] == [0, 0, 16 + 4, 16, 0]
    assert {(report.process, report.gpus) for report in sent} == {(reporter.process, 0.5)}
    assert Reporter(progress, 0.5).process != reporter.process
