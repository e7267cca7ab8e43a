"""What annotating a corpus will take, before anything has run: the `plan` command.

In: `PlanConfig`: everything that `annotate` would be given, and what the plan is for. Out: a `Plan`: texts,
tokens through the model by tool and phase, FLOPs, time, cost, tool replicas, disk. A sample of the corpus is
read, selected and tokenised; of the model only tokenizer and configuration are looked at. What a model makes
of the texts is assumed (assumptions.py), and the plan says from where.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.config import PlanConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import PEAK_FLOPS_PER_S
from pipeline.base.records import Cost, Phase, Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import require_readable
from pipeline.engine.loading import model_shape
from pipeline.method.selection import select
from pipeline.planning.assumptions import CALLS_PER_S, DEMO, Assumptions
from pipeline.planning.corpus_sample import Survey, survey
from pipeline.planning.expected_work import Costs, Sizes, foresee
from pipeline.planning.from_run import experience
from pipeline.storage.provenance import versions
from pipeline.syntax.tokenizer import TokenCounter, load_tokenizer
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, now
from tools_service.base.settings import Frozen
from tools_service.tools.contract import ToolName

_HOUR = 3_600

Tried = Counter[tuple[int, tuple[ToolName, ...]]]
"""Texts by their length in tokens and the tools that are tried on them."""


class WorkPlan(Frozen):
    """One phase under one tool; no tool for what all tools of a text share."""

    tool: ToolName | None
    phase: Phase
    cost: Cost
    flops: int


class ToolPlan(Frozen):
    """One tool."""

    texts: int
    """Texts that it is tried on."""
    texts_kept: int
    """Texts with a call at tau_f or above."""
    calls: int
    """Sent to the tool; that some are equal is not foreseen."""
    calls_per_s: float
    """That one replica answers."""
    replicas_per_actor: float | None
    replicas: int | None
    """For all actors of the plan; None where their speed is not known."""
    allowed: int
    """max_replicas of its deployment."""


class TimePlan(Frozen):
    """How long, on what."""

    source: str
    flops_per_s: float
    """Of one actor."""
    start_s: float
    """Of the whole run, before its actors are at work."""
    actor_hours: float
    gpu_hours: float
    actors: int
    """Those for the deadline, else those of the recipe."""
    hours: float
    cost: float | None
    """In the currency of price_per_hour."""


class DiskPlan(Frozen):
    """What the annotations take."""

    bytes: int
    files: int
    ids_bytes: int
    """Ids of finished texts, in the driver and once on each node that reads, when a run goes on."""


class Plan(Frozen):
    """plan.json."""

    created: str
    versions: dict[str, str]
    recipe: PlanConfig
    shape: ModelShape
    assumptions: Assumptions
    assumed_of_demo: tuple[ToolName, ...]
    """Tools whose part of the assumptions is the demo's."""
    survey: Survey
    texts: int
    tokens: int
    """Of the texts."""
    token_forwards: int
    """Tokens through the model, padding not counted."""
    flops: int
    work: tuple[WorkPlan, ...]
    tools: dict[ToolName, ToolPlan]
    time: TimePlan | None
    """None where neither hardware nor a measured speed was named."""
    disk: DiskPlan

    def write(self, path: Path) -> None:
        """As JSON, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self.model_dump_json(indent=1) + "\n")


def plan(config: PlanConfig) -> Plan:
    """Read the sample and add up. ConfigurationError as of annotate, and where an option is missing."""
    shards = list_files(config.corpus)
    require_readable(shards, config.corpus)
    words = load_tokenizer(config.model.path)
    sizes, shape = Sizes.of(words, config.method), model_shape(config.model.path)
    assumed = experience(config.like) if config.like else DEMO
    missing = tuple(tool for tool in config.method.tools if config.like is None or tool not in assumed.tools)
    assumed = assumed.model_copy(update={"tools": DEMO.tools | assumed.tools})
    found, sample = survey(shards, config.corpus, TokenCounter(config.model.path), config.sample)
    texts = min(found.texts, config.corpus.max_texts or found.texts)
    scale = texts / len(sample)
    tried = _tried(config, sample, sizes)
    work = _work(config, tried, scale, sizes, assumed, shape)
    flops = sum(part.flops for part in work)
    time = _time(config, flops, assumed)
    return Plan(
        created=now(),
        versions=versions(),
        recipe=config,
        shape=shape,
        assumptions=assumed,
        assumed_of_demo=missing,
        survey=found,
        texts=texts,
        tokens=round(scale * sum(n * number for (n, _), number in tried.items())),
        token_forwards=sum(part.cost.tokens for part in work),
        flops=flops,
        work=work,
        tools=_tools(config, tried, scale, assumed, time),
        time=time,
        disk=_disk(config, sample, scale, assumed),
    )


def _tried(config: PlanConfig, sample: Sequence[Text], sizes: Sizes) -> Tried:
    """Selection, as annotate does it; a text that a tool's prompt leaves no room for is not tried."""
    count, method = TokenCounter(config.model.path), config.method
    longest = _max_positions(config.model.path)
    room = {tool: sizes.room(tool, longest, method.of(tool).max_call_tokens) for tool in method.tools}
    tried: Tried = Counter()
    for text in sample:
        if text.skipped is None:
            n = count(text.text)
            fitting = (tool for tool in method.tools if n <= room[tool])
            tried[n, tuple(tool for tool in fitting if select(tool, text, method).chosen)] += 1
    return tried


def _work(
    config: PlanConfig,
    tried: Tried,
    scale: float,
    sizes: Sizes,
    assumed: Assumptions,
    shape: ModelShape,
) -> tuple[WorkPlan, ...]:
    """By tool and phase; what all tools share stands last, as in a manifest."""
    costs: Costs = {}
    for (n, tools), number in tried.items():
        for key, cost in foresee(n, tools, scale * number, sizes, config.method, assumed).items():
            costs[key] = costs.get(key, Cost()) + cost
    order = {tool: place for place, tool in enumerate((*config.method.tools, None))}
    return tuple(
        WorkPlan(tool=tool, phase=phase, cost=cost, flops=shape.flops(cost))
        for (tool, phase), cost in sorted(costs.items(), key=lambda item: order[item[0][0]])
    )


def _time(config: PlanConfig, flops: int, assumed: Assumptions) -> TimePlan | None:
    """A speed given outright goes before named hardware, that before the speed of the run to go by."""
    start_s, pace = assumed.start_s, assumed.pace
    if config.flops_per_s is not None:
        speed, source = config.flops_per_s, "as given"
    elif config.hardware is not None:
        share = config.ray.gpus_per_actor or 1.0
        speed = PEAK_FLOPS_PER_S[config.hardware] * config.utilisation * share
        source = f"{config.hardware} at {config.utilisation:.0%} of its BF16 peak"
    elif pace is not None:
        speed, source = pace.flops_per_s, f"measured in {config.like}"
    elif config.price_per_hour is not None or config.deadline_hours is not None:
        raise ConfigurationError(
            "hardware: a price or a deadline needs a speed; name hardware, flops_per_s, or a run (like)"
        )
    else:
        return None
    actor_hours = flops / speed / _HOUR
    actors = config.ray.actors
    if config.deadline_hours is not None:
        left = config.deadline_hours - start_s / _HOUR
        if left <= 0:
            raise ConfigurationError(
                f"deadline_hours = {config.deadline_hours}: starting takes {start_s:.0f} s"
            )
        actors = max(1, math.ceil(actor_hours / left))
    gpu_hours = actor_hours * config.ray.gpus_per_actor
    return TimePlan(
        source=source,
        flops_per_s=speed,
        start_s=start_s,
        actor_hours=actor_hours,
        gpu_hours=gpu_hours,
        actors=actors,
        hours=actor_hours / actors + start_s / _HOUR,
        cost=config.price_per_hour and config.price_per_hour * (gpu_hours or actor_hours),
    )


def _tools(
    config: PlanConfig,
    tried: Tried,
    scale: float,
    assumed: Assumptions,
    time: TimePlan | None,
) -> dict[ToolName, ToolPlan]:
    plans: dict[ToolName, ToolPlan] = {}
    for tool in config.method.tools:
        habit, method = assumed.tools[tool], config.method.of(tool)
        texts = scale * sum(number for (_, tools), number in tried.items() if tool in tools)
        calls = texts * habit.fill * method.k * method.m * habit.candidates
        rate = (config.calls_per_s or {}).get(tool, CALLS_PER_S[tool])
        each = calls / (time.actor_hours * _HOUR) / rate if time and time.actor_hours else None
        plans[tool] = ToolPlan(
            texts=round(texts),
            texts_kept=round(texts * habit.texts_kept),
            calls=round(calls),
            calls_per_s=rate,
            replicas_per_actor=each,
            replicas=None if each is None or time is None else max(1, math.ceil(each * time.actors)),
            allowed=config.tools.of(tool).deployment.max_replicas,
        )
    return plans


def _disk(config: PlanConfig, sample: Sequence[Text], scale: float, assumed: Assumptions) -> DiskPlan:
    texts, characters = scale * len(sample), scale * sum(len(text.text) for text in sample)
    return DiskPlan(
        bytes=round(assumed.size.text * characters + assumed.size.rest * texts),
        files=math.ceil(texts / config.ray.texts_per_batch),
        ids_bytes=8 * round(texts),
    )


def _max_positions(path: str) -> int:
    from transformers import AutoConfig

    from pipeline.engine.model import max_positions

    return max_positions(AutoConfig.from_pretrained(path, trust_remote_code=False))
