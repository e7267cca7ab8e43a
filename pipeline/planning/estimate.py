"""The command `plan`: what annotating a corpus will take (paper section 2), before anything has run.

In: `PlanConfig`. Out: a `Plan`: texts, tokens and FLOPs by tool and phase, time, cost, tool replicas, disk.
A sample of the corpus is read, selected and tokenised. Of the model only tokenizer and configuration are
read; how it will behave is assumed (assumptions.py), and the plan names the source of the assumptions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.config import PlanConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import PEAK_FLOPS_PER_S
from pipeline.base.records import Cost, Phase, Text, reason_kind
from pipeline.corpus.files import files_of_slice, find_files
from pipeline.corpus.texts import require_readable
from pipeline.engine.limits import max_positions
from pipeline.engine.loading import model_shape
from pipeline.method.selection import select
from pipeline.planning.assumptions import CALLS_PER_S, DEMO, Assumptions
from pipeline.planning.corpus_sample import CorpusSample, sample_corpus
from pipeline.planning.expected_work import PromptSizes, TextCounts, estimate_work
from pipeline.planning.from_run import assumptions_from_run
from pipeline.planning.tool_speed import measure_calls_per_s
from pipeline.storage.kinds import PLAN
from pipeline.storage.provenance import versions
from pipeline.syntax.tokenizer import TokenCounter, load_tokenizer
from tools_service.base.checkpoints import load_config
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, now
from tools_service.base.locks import output_lock
from tools_service.base.ownership import require_own
from tools_service.base.settings import ALL, Frozen
from tools_service.syntax.calls import has_call_syntax

_HOUR = 3_600


class WorkPlan(Frozen):
    """One phase under one tool; no tool for L_i(empty), which all tools of a text share."""

    tool: str | None
    phase: Phase
    cost: Cost
    flops: int


class ToolPlan(Frozen):
    texts: int  # selected for this tool
    texts_kept: int  # with a call at tau_f or above
    calls: int  # sent to the tool, equal calls included
    calls_per_s: float  # answered by one replica
    replicas_per_actor: float | None  # None if the actors' speed is unknown
    replicas: int | None  # for all actors of the plan
    max_replicas: int  # the limit of its deployment


class TimePlan(Frozen):
    flops_per_s: float  # of one actor
    source: str  # of flops_per_s
    start_s: float  # until all actors work
    actor_hours: float
    gpu_hours: float
    actors: int  # the fewest that meet the deadline; ray.actors if there is none
    hours: float
    cost: float | None  # in the currency of price_per_hour


class Plan(Frozen):
    """plan.json."""

    created: str
    versions: dict[str, str]
    config: PlanConfig
    shape: ModelShape
    assumptions: Assumptions
    tools_from_demo: tuple[str, ...]  # tools whose statistics are the demo's
    tools_without_figures: tuple[str, ...] = ()  # tools whose statistics are the means over others
    sample: CorpusSample
    texts: int
    tokens: int  # of the texts
    token_forwards: int  # tokens through the model, without padding
    flops: int
    work: tuple[WorkPlan, ...]
    tools: dict[str, ToolPlan]
    time: TimePlan | None  # None if no speed is known
    disk_bytes: int
    disk_files: int
    skipped: dict[str, int]  # texts of the sample that annotate is going to skip, by reason
    selection: dict[str, dict[str, int]]
    """Texts of the sample, by tool and the rule that selects them, or the reason against them ("no: …")."""
    call_syntax: int  # texts of the sample that hold call syntax
    left_out: tuple[str, ...] = ()  # paths of corpus.paths that are not read, with the reason
    ids_bytes: int  # ids of finished texts, in the driver and each reading node when a run is resumed

    def write(self, path: Path) -> None:
        """Write JSON atomically; creates the folder. NotOwnError if the file is there and is no plan."""
        with output_lock(path, wait=True):
            require_own(path, PLAN)
            atomic_write(path, self.model_dump_json(indent=1) + "\n")


def plan(config: PlanConfig) -> Plan:
    """Raises ConfigurationError as annotate does, and if an option is missing."""
    require_own(config.output, PLAN)
    listing = find_files(config.corpus)
    files = files_of_slice(listing.files, config.corpus)
    require_readable(files, config.corpus)
    method, model_path = config.method, config.model.path
    sizes, shape = PromptSizes.of(load_tokenizer(model_path), method), model_shape(model_path)
    measured = assumptions_from_run(config.like) if config.like else DEMO
    assumptions = measured.model_copy(update={"tools": DEMO.tools | measured.tools})

    sample, texts = sample_corpus(files, config.corpus, TokenCounter(model_path), config.sample)
    total_texts = min(sample.texts, config.corpus.max_texts or sample.texts)
    scale = total_texts / len(texts)
    counts, selection = _count_texts(config, texts, sizes)
    selected: Counter[str] = Counter()
    for (_, tools), number in counts.items():
        selected.update(dict.fromkeys(tools, number))

    costs = estimate_work(counts, scale, sizes, method, assumptions)
    order = [*method.tools, None]
    work = tuple(
        WorkPlan(tool=tool, phase=phase, cost=cost, flops=shape.flops(cost))
        for (tool, phase), cost in sorted(costs.items(), key=lambda item: order.index(item[0][0]))
    )
    flops = sum(row.flops for row in work)
    time = _time(config, flops, assumptions)
    text_bytes = assumptions.bytes_per_character * scale * sum(len(text.text) for text in texts)
    return Plan(
        created=now(),
        versions=versions(),
        config=config,
        shape=shape,
        assumptions=assumptions,
        tools_from_demo=tuple(
            t for t in method.tools if t in DEMO.tools and (measured is DEMO or t not in measured.tools)
        ),
        tools_without_figures=tuple(t for t in method.tools if t not in assumptions.tools),
        sample=sample,
        texts=total_texts,
        tokens=round(scale * sum(n * number for (n, _), number in counts.items())),
        token_forwards=sum(row.cost.tokens for row in work),
        flops=flops,
        work=work,
        tools={tool: _tool(tool, scale * selected[tool], config, assumptions, time) for tool in method.tools},
        time=time,
        disk_bytes=round(text_bytes + assumptions.bytes_per_text * total_texts),
        disk_files=math.ceil(total_texts / config.ray.texts_per_batch),
        ids_bytes=8 * total_texts,
        left_out=listing.what_is_left_out(),
        skipped=dict(Counter(reason_kind(text.skipped) for text in texts if text.skipped).most_common()),
        selection={tool: dict(rules.most_common()) for tool, rules in selection.items()},
        call_syntax=sum(text.skipped is None and has_call_syntax(text.text, method.tools) for text in texts),
    )


def _count_texts(
    config: PlanConfig, texts: Sequence[Text], sizes: PromptSizes
) -> tuple[TextCounts, dict[str, Counter[str]]]:
    """Select tools as annotate does; a tool is left out if its prompt leaves no room for the text.

    Also returns the texts by rule, for each tool.
    """
    count_tokens, method = TokenCounter(config.model.path), config.method
    longest = max_positions(load_config(config.model.path, "model.path"))
    room = {t: sizes.max_text_tokens(t, longest, method.of(t).max_call_tokens) for t in method.tools}
    counts: TextCounts = Counter()
    selection: dict[str, Counter[str]] = {tool: Counter() for tool in method.tools}
    for text in texts:
        if text.skipped is None:
            n = count_tokens(text.text)
            tools = []
            for tool in method.tools:
                chosen = select(tool, text, method)
                fits = n <= room[tool]
                selection[tool][chosen.rule if fits or not chosen.chosen else "no: context"] += 1
                if chosen.chosen and fits:
                    tools.append(tool)
            counts[n, tuple(tools)] += 1
    return counts, selection


def _time(config: PlanConfig, flops: int, assumptions: Assumptions) -> TimePlan | None:
    """flops_per_s goes before hardware, and hardware before the speed of the run in `like`."""
    if config.flops_per_s is not None:
        speed, source = config.flops_per_s, "as given"
    elif config.hardware is not None:
        gpus = config.ray.gpus_per_actor or 1.0
        speed = PEAK_FLOPS_PER_S[config.hardware] * config.utilisation * gpus
        source = f"{config.hardware} at {config.utilisation:.0%} of its BF16 peak"
    elif assumptions.throughput is not None:
        speed, source = assumptions.throughput, f"measured in {config.like}"
    elif config.price_per_hour is not None or config.deadline_hours is not None:
        raise ConfigurationError(
            "hardware: a price or a deadline needs a speed; name hardware, flops_per_s, or a run (like)"
        )
    else:
        return None
    actor_hours, start_hours, actors = flops / speed / _HOUR, assumptions.start_s / _HOUR, config.ray.actors
    if config.deadline_hours is not None:
        hours_left = config.deadline_hours - start_hours
        if hours_left <= 0:
            raise ConfigurationError(
                f"deadline_hours = {config.deadline_hours}: starting takes {assumptions.start_s:.0f} s"
            )
        actors = max(1, math.ceil(actor_hours / hours_left))
    gpu_hours = actor_hours * config.ray.gpus_per_actor
    return TimePlan(
        flops_per_s=speed,
        source=source,
        start_s=assumptions.start_s,
        actor_hours=actor_hours,
        gpu_hours=gpu_hours,
        actors=actors,
        hours=actor_hours / actors + start_hours,
        cost=config.price_per_hour and config.price_per_hour * (gpu_hours or actor_hours),
    )


def _tool(
    tool: str, texts: float, config: PlanConfig, assumptions: Assumptions, time: TimePlan | None
) -> ToolPlan:
    statistics, settings = assumptions.of_tool(tool), config.method.of(tool)
    calls = texts * statistics.positions * settings.k * settings.m * statistics.candidates
    given = config.calls_per_s or {}
    calls_per_s = given.get(tool) or given.get(ALL) or CALLS_PER_S.get(tool)
    if calls_per_s is None:
        calls_per_s = measure_calls_per_s(tool, config)
    per_actor = replicas = None
    if time and time.actor_hours:
        per_actor = calls / (time.actor_hours * _HOUR) / calls_per_s
        replicas = max(1, math.ceil(per_actor * time.actors))
    return ToolPlan(
        texts=round(texts),
        texts_kept=round(texts * statistics.texts_kept),
        calls=round(calls),
        calls_per_s=calls_per_s,
        replicas_per_actor=per_actor,
        replicas=replicas,
        max_replicas=config.tools.of(tool).deployment.max_replicas,
    )
