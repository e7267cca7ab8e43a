"""Print a plan: a summary, tables of work and tools, warnings.

In: a `Plan`. Out: renderables of rich. Nothing is computed here except units and sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from pipeline.planning.estimate import Plan, TimePlan, ToolPlan, WorkPlan


def render_plan(plan: Plan) -> Group:
    """Everything that `plan` prints."""
    rows_by_tool = groupby(plan.work, lambda row: row.tool)
    work = {tool or "all tools": _work_cells(list(rows)) for tool, rows in rows_by_tool}
    work["all"] = _work_cells(plan.work)
    tools = {tool: _tool_cells(row) for tool, row in plan.tools.items()}
    tables = _table("Tokens through the model (FLOPs)", work), "", _table("Tools", tools), ""
    return Group(_summary(plan), "", *tables, *(f"! {line}" for line in warnings(plan)))


def warnings(plan: Plan) -> Iterator[str]:
    """What limits the plan's figures, most important first."""
    config = plan.config
    if plan.tools_from_demo:
        yield (
            f"the statistics of {', '.join(plan.tools_from_demo)} are assumed to be as in the demo; annotate "
            "a few hundred texts of your own and name that folder with --like"
        )
    if plan.tools_without_figures:
        yield (
            f"of {', '.join(plan.tools_without_figures)} only the calls per second are known, measured here; "
            "the rest is assumed to be the mean of the other tools: name a run with --like"
        )
    if config.like is not None and plan.assumptions.throughput is None:
        yield (
            f"{config.like} shows no speed: that takes a run of one session, with three batches an actor or "
            "more, whose files have their original times (copies do not)"
        )
    if plan.time is None:
        yield "no time: name --hardware, or --flops-per-s, or --like a run on the same hardware"
    elif config.flops_per_s is None and config.hardware is not None:
        yield (
            f"--utilisation {config.utilisation} is an assumption; a finished run shows the real speed in "
            "compute.flops_per_s"
        )
    if plan.time is not None:
        for name, needed, budget in (
            ("max_hours", plan.time.hours, config.max_hours),
            ("max_gpu_hours", plan.time.gpu_hours, config.max_gpu_hours),
        ):
            if budget is not None and needed > budget:
                yield f"{name} = {budget:g}, but annotate needs about {needed:,.3g}: it stops unfinished"
    for tool, row in plan.tools.items():
        if row.replicas is not None and row.replicas > row.max_replicas:
            option = f"tools.{tool.lower()}.deployment.max_replicas = {row.max_replicas}"
            yield (
                f"{tool} needs {row.replicas} replicas of {_short(row.calls_per_s)} calls/s, but {option}: "
                "raise it, or annotators wait"
            )


def _summary(plan: Plan) -> Table:
    sample = plan.sample
    about = "" if sample.texts_read == sample.texts else "about "
    corpus = f"{about}{plan.texts:,} texts of {plan.tokens / max(1, plan.texts):.0f} tokens"
    corpus += f"; sample: {sample.texts_read:,} texts from {sample.files_read} of {sample.files:,} files"
    if sample.bytes_read is not None and sample.bytes:
        corpus += f", {sample.bytes_read / sample.bytes:.2%} of {_short(sample.bytes)}B"
    disk = f"{_short(plan.disk_bytes)}B of annotations in {plan.disk_files:,} files"
    disk += f"; ids of finished texts take {_short(plan.ids_bytes)}B on each node that reads"
    table = Table.grid(padding=(0, 2))
    table.add_row("corpus", corpus)
    table.add_row("assumptions", plan.assumptions.source)
    table.add_row("model", f"{_short(plan.shape.parameters)} weights in matrices, {plan.config.model.path}")
    table.add_row(
        "work", f"{_short(plan.token_forwards)} tokens through the model, {_short(plan.flops)} FLOPs"
    )
    if plan.time is not None:
        table.add_row("time", _time(plan.time, plan.config.deadline_hours))
    table.add_row("disk", disk)
    return table


def _time(time: TimePlan, deadline: float | None) -> str:
    kind = "GPU" if time.gpu_hours else "actor"
    cost = "" if time.cost is None else f", cost {time.cost:,.2f}"
    fewest = "" if deadline is None else f" (the fewest for {_hours(deadline)})"
    start = f"; starting takes {time.start_s:.0f} s of it" if time.start_s else ""
    return (
        f"{_short(time.gpu_hours or time.actor_hours)} {kind}-hours{cost}: "
        f"{_hours(time.hours)} with {time.actors} actor{'s' * (time.actors > 1)}{fewest}{start}; "
        f"{_short(time.flops_per_s)} FLOP/s an actor, {time.source}"
    )


def _work_cells(rows: Sequence[WorkPlan]) -> dict[str, str]:
    cells = {}
    for column in ("positions", "decode", "empty", "plus", "call", "all"):
        selected = [row for row in rows if column in (row.phase, "all")]
        tokens = sum(row.cost.tokens for row in selected)
        flops = sum(row.flops for row in selected)
        cells[column] = f"{_short(tokens)} ({_short(flops)})" if selected else ""
    return cells


def _tool_cells(row: ToolPlan) -> dict[str, str]:
    return {
        "texts": _short(row.texts),
        "with a kept call": _short(row.texts_kept),
        "calls": _short(row.calls),
        "calls a text": f"{row.calls / max(1, row.texts):.2f}",
        "calls/s a replica": _short(row.calls_per_s),
        "replicas per actor": "" if row.replicas_per_actor is None else f"{row.replicas_per_actor:.2g}",
        "replicas": "" if row.replicas is None else str(row.replicas),
    }


def _table(title: str, rows: Mapping[Any, Mapping[str, str]]) -> Table:
    """Cells by row and column; every row has the same columns."""
    columns = [Column(name, justify="right") for name in next(iter(rows.values()))]
    table = Table("tool", *columns, title=title, title_justify="left")
    for name, cells in rows.items():
        table.add_row(name, *cells.values())
    return table


def _short(number: float) -> str:
    """Three digits and a power of a thousand: 12.3 M."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g}"


def _hours(hours: float) -> str:
    if hours < 2:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 100 else f"{hours / 24:.1f} days"
