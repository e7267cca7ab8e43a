"""What a terminal shows of a fine-tuning run: a progress line, and a log line for each evaluation.

In: metrics.jsonl (metrics_log.py), which the driver follows while the first worker writes it. Out: nothing
but what is shown; a file of the run is never changed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.base.repeating import repeating
from pipeline.finetuning.watching.metrics_log import (
    Event,
    GenerationProbe,
    HeldOutEvaluation,
    TrainStep,
    event_as,
    numbers,
    read_events,
)

logger = logging.getLogger(__name__)

LINE = "step {n_fmt} of {total_fmt}, {remaining} left{postfix}"
_POLL_S = 0.5
_SAID_ELSEWHERE = {
    *(each.name for kind in (TrainStep, HeldOutEvaluation, GenerationProbe) for each in fields(kind)),
    "perplexity",
}


@contextmanager
def tail(path: Path, max_steps: int) -> Iterator[None]:
    """Follow the file meanwhile: a progress line on a terminal, one log line per evaluation."""
    evaluated = max((event["step"] for event in read_events(path)[0] if "held_out_loss" in event), default=-1)
    with (
        logging_redirect_tqdm(),
        # A resumed run goes on where it was evaluated last.
        tqdm(total=max_steps, initial=max(evaluated, 0), bar_format=LINE, disable=None) as bar,
        repeating(Follower(path, bar, evaluated).update, _POLL_S),
    ):
        yield


@dataclass(slots=True)
class Follower:
    """Draws the progress line, and logs the evaluations after step `evaluated`."""

    path: Path
    bar: tqdm[Any]
    evaluated: int

    latest: Event = field(default_factory=dict)
    probe: GenerationProbe | None = None
    read: int = 0  # bytes of the file
    inode: int | None = None

    def update(self) -> None:
        for event in self._new_events():
            self.latest |= event
            if "prompts" in event:
                self.probe = event_as(GenerationProbe, event)
            if "held_out_loss" in event and event["step"] > self.evaluated:
                self.evaluated = event["step"]
                said: list[object] = [evaluation_text(self.latest)]
                if self.probe is not None and self.probe.step == self.evaluated:
                    said.append(self.probe)
                for each in said:  # with the folder: two fine-tunings may run at the same time
                    step = (self.path.parent, self.evaluated, self.bar.total)
                    logger.info("%s: step %d of %d: %s", *step, each)
        self.bar.set_postfix_str(progress_text(self.latest), refresh=False)
        self.bar.update(max(0, self.latest.get("step", 0) - self.bar.n))

    def _new_events(self) -> list[Event]:
        """The lines since the last call; all lines if a start has written the file anew."""
        try:
            with self.path.open("rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self.inode:
                    self.inode, self.read = inode, 0
                file.seek(self.read)
                lines, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.read += len(lines + end)
        return [json.loads(line) for line in lines.splitlines()]


def evaluation_text(latest: Event) -> str:
    """The evaluation among the latest values, in words."""
    training = f"loss {latest['loss']:.4f}, " if "loss" in latest else ""
    others = numbers({name: value for name, value in latest.items() if name not in _SAID_ELSEWHERE})
    shown = [f"{name.replace('_', ' ').replace('/', ' ')} {value:.5g}" for name, value in others.items()]
    held_out = f"held-out perplexity {latest['perplexity']:.4f}, held-out loss {latest['held_out_loss']:.4f}"
    return ", ".join([f"{training}{held_out}", *shown])


def progress_text(latest: Event) -> str:
    """The latest values in one line; what is not known is left out."""
    parts = (
        ("loss", "loss {:.4f}"),
        ("perplexity", "perplexity {:.4g}"),
        ("learning_rate", "rate {:.2g}"),
        ("gradient_norm", "norm {:.2g}"),
        ("tokens_per_s", "{:,.0f} tokens/s"),
        ("utilisation", "{:.0%} of peak"),
    )
    texts = [text.format(latest[name]) for name, text in parts if latest.get(name) is not None]
    if latest.get("utilisation") is None and latest.get("flops_per_s"):
        texts.append(f"{latest['flops_per_s'] / 1e9:,.0f} GFLOP/s")
    if memory := latest.get("memory_bytes"):
        texts.append(f"{memory / 2**30:.1f} GiB")
    return ", ".join(texts)
