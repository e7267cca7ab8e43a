"""A plan for people: what there is, what it takes, how sure that is.

In: a `Plan`. Out: renderables of rich, plain text where there is no terminal. Nothing is computed here but
units.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.base.config import PlanConfig
from pipeline.planning.corpus_sample import Survey
from pipeline.planning.estimate import DiskPlan, Plan, TimePlan, ToolPlan, WorkPlan

_PHASES = ("positions", "decode", "empty", "plus", "call")


def outlook(plan: Plan) -> Group:
    """Everything `plan` prints."""
    parts: list[RenderableType] = [_facts(plan), "", _work_table(plan), "", _tool_table(plan), ""]
    parts += [f"! {line}" for line in warnings(plan)]
    return Group(*parts)


def warnings(plan: Plan) -> list[str]:
    """What a reader of the numbers should know, most important first."""
    found = []
    if plan.assumed_of_demo:
        tools = ", ".join(plan.assumed_of_demo)
        found.append(
            f"what a text brings under {tools} is assumed to be as in the demo; annotate some hundred texts "
            "of your own and name that folder with --like"
        )
    if plan.recipe.like is not None and plan.assumptions.pace is None:
        found.append(
            f"{plan.recipe.like} shows no speed: that takes one session, three batches an actor or more, and "
            "its files with their own times (a copy has others)"
        )
    if plan.time is None:
        found.append("no time: name --hardware, or --flops-per-s, or --like a run on the same hardware")
    elif plan.recipe.flops_per_s is None and plan.recipe.hardware is not None:
        found.append(
            f"--utilisation {plan.recipe.utilisation} is an assumption; compute.flops_per_s of a finished "
            "run shows yours"
        )
    for tool, part in plan.tools.items():
        if part.replicas is not None and part.replicas > part.allowed:
            found.append(
                f"{tool} needs {part.replicas} replicas of {_short(part.calls_per_s)} calls/s, but "
                f"tools.{tool.lower()}.deployment.max_replicas = {part.allowed}: raise it, or annotators wait"
            )
    return found


def _facts(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("corpus", _corpus(plan, plan.survey))
    table.add_row("assumptions", plan.assumptions.source)
    table.add_row("model", f"{_short(plan.shape.parameters)} weights in matrices, {plan.recipe.model.path}")
    table.add_row(
        "work", f"{_short(plan.token_forwards)} tokens through the model, {_short(plan.flops)} FLOPs"
    )
    if plan.time is not None:
        table.add_row("time", _time(plan.time, plan.recipe))
    table.add_row("disk", _disk(plan.disk))
    return table


def _corpus(plan: Plan, survey: Survey) -> str:
    read = f"{survey.texts_read:,} texts from {survey.files_read} of {survey.files:,} files"
    if survey.bytes_read is not None and survey.bytes:
        read += f", {survey.bytes_read / survey.bytes:.2%} of {_bytes(survey.bytes)}"
    exact = survey.texts_read == survey.texts
    about = "" if exact else "about "
    return f"{about}{plan.texts:,} texts of {plan.tokens / max(1, plan.texts):.0f} tokens; sample: {read}"


def _time(time: TimePlan, config: PlanConfig) -> str:
    hours = f"{_hours(time.hours)} with {time.actors} actor{'s' * (time.actors > 1)}" + (
        f" (the fewest for {_hours(config.deadline_hours)})" if config.deadline_hours is not None else ""
    )
    used = (
        f"{_short(time.gpu_hours)} GPU-hours" if time.gpu_hours else f"{_short(time.actor_hours)} actor-hours"
    )
    cost = f", cost {time.cost:,.2f}" if time.cost is not None else ""
    start = f"; starting takes {time.start_s:.0f} s of it" if time.start_s else ""
    return f"{used}{cost}: {hours}{start}; {_short(time.flops_per_s)} FLOP/s an actor, {time.source}"


def _disk(disk: DiskPlan) -> str:
    ids = f"ids of finished texts take {_bytes(disk.ids_bytes)} on each node that reads"
    return f"{_bytes(disk.bytes)} of annotations in {disk.files:,} files; {ids}"


def _work_table(plan: Plan) -> Table:
    table = Table(title="Tokens through the model (FLOPs)", title_justify="left")
    table.add_column("tool")
    for phase in (*_PHASES, "all"):
        table.add_column(phase, justify="right")
    for tool in dict.fromkeys(part.tool for part in plan.work):
        parts = [part for part in plan.work if part.tool == tool]
        cells = [[part for part in parts if part.phase == phase] for phase in _PHASES]
        table.add_row(tool or "all tools", *map(_cell, cells), _cell(parts))
    table.add_row(
        "all", *(_cell([p for p in plan.work if p.phase == one]) for one in _PHASES), _cell(plan.work)
    )
    return table


def _cell(parts: list[WorkPlan] | tuple[WorkPlan, ...]) -> str:
    if not parts:
        return ""
    return f"{_short(sum(p.cost.tokens for p in parts))} ({_short(sum(p.flops for p in parts))})"


def _tool_table(plan: Plan) -> Table:
    table = Table(title="Tools", title_justify="left")
    table.add_column("tool")
    names = (
        "texts",
        "with a kept call",
        "calls",
        "calls a text",
        "calls/s a replica",
        "replicas per actor",
        "replicas",
    )
    for name in names:
        table.add_column(name, justify="right")
    for tool, part in plan.tools.items():
        table.add_row(tool, *_tool_cells(part))
    return table


def _tool_cells(part: ToolPlan) -> list[str]:
    each = "" if part.replicas_per_actor is None else f"{part.replicas_per_actor:.2g}"
    return [
        _short(part.texts),
        _short(part.texts_kept),
        _short(part.calls),
        f"{part.calls / max(1, part.texts):.2f}",
        _short(part.calls_per_s),
        each,
        "" if part.replicas is None else str(part.replicas),
    ]


def _short(number: float) -> str:
    """Three digits and a power of thousand: 12.3 M."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    return f"{_short(number)}B"


def _hours(hours: float) -> str:
    if hours < 2:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 100 else f"{hours / 24:.1f} days"
