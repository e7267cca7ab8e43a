"""metrics.jsonl of a fine-tuning run: the first worker writes it, whoever started the run follows it.

One line per optimizer step: step, loss (nats per token, before the step), learning_rate, gradient_norm
(before clipping; null at ZeRO stage 0). One line per evaluation: step, held_out_loss, tokens, perplexity.
Steps count from 1; step 0 is the model as it came. A step is in the file once, also after restarts.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, by its number."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out loss, nats per token, after so many steps."""

    step: int
    held_out_loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.held_out_loss)


class MetricsLog:
    """Appends to the file, from the lines of the first `steps` steps on."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        kept = [event for event in _read(path) if event["step"] <= steps] if steps else []
        part = path.with_suffix(".part")
        part.write_text("".join(map(_line, kept)), encoding="utf-8")
        part.replace(path)

    def step(self, step: Step) -> None:
        self._append(asdict(step))

    def evaluation(self, evaluation: Evaluation) -> None:
        self._append(asdict(evaluation) | {"perplexity": evaluation.perplexity})

    def _append(self, event: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(event))


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """The evaluations in the order of their steps."""
    return tuple(
        Evaluation(event["step"], event["held_out_loss"], event["tokens"])
        for event in _read(path)
        if "held_out_loss" in event
    )


@contextmanager
def tail(path: Path, max_steps: int) -> Iterator[None]:
    """Meanwhile show a progress bar (on a terminal) and log one line per evaluation."""
    stop = threading.Event()
    evaluated = max((evaluation.step for evaluation in read_evaluations(path)), default=-1)
    thread = threading.Thread(target=_follow, args=(path, max_steps, evaluated, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(path: Path, max_steps: int, evaluated: int, stop: threading.Event) -> None:
    """`evaluated`: the last evaluation that an earlier start has logged."""
    shown, loss = -1, math.nan
    with logging_redirect_tqdm(), tqdm(total=max_steps, unit="step", disable=None) as bar:
        last = False
        while not last:
            last = stop.wait(_POLL_S)
            for event in _read(path):
                if "loss" in event and event["step"] > shown:
                    shown, loss = event["step"], event["loss"]
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if "perplexity" in event and event["step"] > evaluated:
                    evaluated = event["step"]
                    logger.info(
                        "step %d of %d: %sheld-out perplexity %.4f",
                        evaluated,
                        max_steps,
                        f"loss {loss:.4f}, " if evaluated else "",
                        event["perplexity"],
                    )
            bar.update(max(shown, 0) - bar.n)


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines; the last may still be in the writing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event) + "\n"
