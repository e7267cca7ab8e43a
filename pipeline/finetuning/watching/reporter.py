"""Where the first worker reports steps and evaluations: metrics.jsonl, Ray metrics and the trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.watching.metrics import event_samples
from pipeline.finetuning.watching.metrics_log import MetricsLog, RunEvent, read_events
from pipeline.finetuning.watching.trackers import Trackers
from pipeline.runtime.metrics import Recorder

Report = Callable[[RunEvent], None]


@contextmanager
def reporting(config: FinetuneConfig, metrics: Path, steps_done: int, rank: int) -> Iterator[Report]:
    """Give the function that reports a step or an evaluation; on other workers it does nothing.

    `metrics` is metrics.jsonl, and the only one that can fail. `steps_done`: of the checkpoint that the run
    goes on from; later lines are written again. The end waits for the trackers.
    """
    if rank:
        yield lambda event: None
        return
    log, recorder = MetricsLog(metrics, steps_done), Recorder(str(config.output))
    trackers = Trackers(config, read_events(metrics)[0])

    def report(event: RunEvent) -> None:
        values = log.append(event)
        recorder.record(event_samples(values, config.max_steps))
        trackers.log(values)

    try:
        yield report
    finally:
        trackers.close()
