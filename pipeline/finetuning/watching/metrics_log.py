"""metrics.jsonl of a fine-tuning run: the first worker writes it, progress.py and the report read it.

One line per optimizer step: step, loss (nats per token, before the step), learning_rate,
gradient_norm (before clipping; null at ZeRO stage 0) and the fields of `StepMeasures`, which are null
or absent where they are not known. For each evaluation a line of the generation probe (step, prompts,
calls, …), if there is one, then a line with step, held_out_loss (nats per token of the column that is
trained on), tokens, plain_loss (the same texts without their calls), plain_tokens and perplexity. Steps
count from 1; step 0 is the model before training.
Each step is in the file once, also after restarts; a repeated one differs in its measures only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write

Event = dict[str, Any]
"""A line of the file."""
_LARGEST_LOSS = math.log(sys.float_info.max)


def _measure() -> Any:
    return field(default=None, compare=False)  # two runs of one configuration differ in it


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMeasures:
    """Speed and memory of an optimizer step; rates are sums over the workers."""

    seconds: float | None = _measure()
    tokens_per_s: float | None = _measure()  # tokens of the examples, without padding
    flops_per_s: float | None = _measure()  # of the model
    hardware_flops_per_s: float | None = _measure()  # the same and recomputed activations; null without them
    utilisation: float | None = _measure()  # flops_per_s over the BF16 peak of all GPUs; null on a CPU
    memory_bytes: int | None = _measure()  # first worker: its GPU's peak so far; resident memory on a CPU


@dataclass(frozen=True, slots=True)
class TrainStep(StepMeasures):
    """One optimizer step; the loss in nats per token."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None


@dataclass(frozen=True, slots=True)
class HeldOutEvaluation:
    """The losses on the held-out texts, nats per token, after `step` steps.

    With the calls, if the run trains on them (`held_out_loss`, over `tokens`), and without (`plain_loss`,
    over `plain_tokens`; None in files of earlier versions).
    """

    step: int
    held_out_loss: float
    tokens: int
    plain_loss: float | None = None
    plain_tokens: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(plain_loss), in files of earlier versions exp(held_out_loss); infinite where that is beyond
        the numbers of a machine."""
        loss = self.held_out_loss if self.plain_loss is None else self.plain_loss
        return math.exp(loss) if loss < _LARGEST_LOSS else math.inf


@dataclass(frozen=True, slots=True)
class GenerationProbe:
    """How the model continued `prompts` held-out texts after `step` steps, each from before its first call.

    prompts = the sum of `calls` + malformed + unfinished + without_call.
    """

    step: int
    prompts: int
    calls: dict[str, int]  # by tool: calls that reached their arrow
    malformed: int  # begun, and no call
    unfinished: int  # begun, and not at their arrow after `probe_tokens`
    without_call: int
    same_tool: int  # calls of the tool that C* has there
    expected: dict[str, int]  # prompts by that tool

    def __str__(self) -> str:
        by_tool = ", ".join(f"{tool} {count}" for tool, count in self.calls.items() if count) or "none"
        return (
            f"calls on {self.prompts} prompts: {by_tool}; {self.same_tool} of the tool in C*, "
            f"{self.malformed} malformed, {self.unfinished} unfinished, {self.without_call} without"
        )


RunEvent = TrainStep | HeldOutEvaluation | GenerationProbe
E = TypeVar("E", HeldOutEvaluation, GenerationProbe)


_MEASURES = frozenset(each.name for each in fields(StepMeasures))


class MetricsLog:
    """Appends to the file. First removes lines after step `steps`: they are written again."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        kept = [event for event in _read(path) if event["step"] <= steps] if steps else []
        atomic_write(path, "".join(json.dumps(event) + "\n" for event in kept))

    def append(self, event: RunEvent) -> Event:
        """Write one line; returns its values."""
        # The measures stand last.
        values = dict(sorted(asdict(event).items(), key=lambda value: value[0] in _MEASURES))
        if isinstance(event, HeldOutEvaluation):
            values["perplexity"] = event.perplexity
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        return values


def without_measures(event: Mapping[str, Any]) -> Event:
    """The values of a line that are the same in every run of the same configuration."""
    return {name: value for name, value in event.items() if name not in _MEASURES}


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line except its step, by name; those of a group as ``group/name``."""
    found: dict[str, float] = {}
    for name, value in event.items():
        group = {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else None
        for key, entry in (group or {name: value}).items():
            if isinstance(entry, int | float) and not isinstance(entry, bool) and math.isfinite(entry):
                found[key] = entry
    found.pop("step", None)
    return found


def evaluations(path: Path, steps: int) -> list[HeldOutEvaluation]:
    """The evaluations in the file up to step `steps`, in their order. Raises as `require_readable` does."""
    require_readable(path)
    return [evaluation for evaluation in evaluations_of(_read(path)) if evaluation.step <= steps]


def evaluations_of(events: Iterable[Event]) -> list[HeldOutEvaluation]:
    """The evaluations among these lines, in their order; those without numbers are left out."""
    return [
        event_as(HeldOutEvaluation, event)
        for event in events
        if all(isinstance(event.get(name), int | float) for name in ("held_out_loss", "tokens"))
        and isinstance(event.get("plain_loss"), int | float | None)
    ]


def event_as(kind: type[E], event: Event) -> E:
    """A line with the values of `kind`; others are left out."""
    return kind(**{field.name: event[field.name] for field in fields(kind) if field.name in event})


def steps_done(path: Path) -> int:
    """Optimizer steps in the file so far; 0 without a file."""
    return max((event["step"] for event in read_events(path)[0] if "loss" in event), default=0)


def require_readable(path: Path) -> None:
    """Raise ConfigurationError for a file whose complete lines are not those of a MetricsLog."""
    try:
        if not all({"step"} < event.keys() for event in _read(path)):
            raise ValueError("a line without a step or without values")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is damaged: {brief(error)}. Bring it back, or start over with --force"
        ) from error


def read_events(path: Path) -> tuple[list[Event], tuple[str, ...]]:
    """The lines that can be read, and a sentence about the others. The last line may not be written yet."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return [], ()
    except OSError as error:
        return [], (f"{path} cannot be read: {error}",)
    events: list[Event] = []
    for line in lines:
        try:
            event = json.loads(line)
            if isinstance(event["step"], int):
                events.append(event)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    if damaged := len(lines) - len(events):
        return events, (f"{path}: {damaged:,} of {len(lines):,} lines are damaged and left out",)
    return events, ()


def _read(path: Path) -> list[dict[str, Any]]:
    """The complete lines; the last one may not be written yet."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
