"""Where the first worker reports steps and evaluations: metrics.jsonl, Ray metrics and the trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.metrics import event_samples
from pipeline.finetuning.metrics_log import MetricsLog, RunEvent, read_events
from pipeline.finetuning.run_folder import RunFolder
from pipeline.finetuning.trackers import Trackers
from pipeline.runtime.metrics import Recorder

Report = Callable[[RunEvent], None]


@contextmanager
def reporting(config: FinetuneConfig, steps_done: int, rank: int) -> Iterator[Report]:
    """Give the function that reports a step or an evaluation; on other workers it does nothing.

    `steps_done`: of the checkpoint that the run goes on from; later lines are written again. Only
    metrics.jsonl can fail. The end waits for the trackers.
    """
    if rank:
        yield lambda event: None
        return
    metrics = RunFolder(config.output).metrics
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
