"""The numbers of bench.annotate's systems, their comparison and the tables.

In: `SystemRun`s. Out: a row of numbers for each system, whether two systems kept the same calls, and
text to print.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.engines import OPPONENTS
from bench.systems import SystemRun
from pipeline.base.cost import ModelShape
from pipeline.base.records import Call, Cost, Phase
from pipeline.method.filtering import kept


@dataclass(frozen=True)
class Scale:
    """The reference values that a system's numbers are divided by."""

    lower_bounds: Sequence[Mapping[Phase, Cost]]
    """The least work that each text needs, by phase."""
    shape: ModelShape

    def row(self, runs: Sequence[SystemRun], rate: float) -> dict[str, Any]:
        """The numbers of the median run, to print and to write. `rate` is that of a matrix product."""
        run = sorted(runs, key=lambda run: run.timing["wall_s"])[(len(runs) - 1) // 2]
        texts, wall_s = len(run.calls), run.timing["wall_s"]
        tokens_fed = {phase: cost.tokens + cost.padding for phase, cost in run.usage.items()}
        lower_bound = sum_costs(self.lower_bounds[:texts])
        flops = self.shape.flops(sum(run.usage.values(), Cost()))
        least_tokens = sum(cost.tokens for cost in lower_bound.values())
        return {
            "system": run.name,
            "texts": texts,
            "texts_per_s": round(texts / wall_s, 3),
            "texts_per_s_by_round": [round(texts / run.timing["wall_s"], 3) for run in runs],
            "texts_per_cpu_s": round(texts / run.timing["cpu_s"], 3),
            "candidates_per_s": round(run.candidates / wall_s, 2),
            "tokens_per_text": round(sum(tokens_fed.values()) / texts, 1),
            "forwards_per_text": round(run.forwards / texts, 2),
            "padding_per_text": round(sum(cost.padding for cost in run.usage.values()) / texts, 1),
            "tokens_per_lower_bound": round(sum(tokens_fed.values()) / least_tokens, 4),
            "tokens_by_phase": tokens_fed,
            "lower_bound_by_phase": {phase: cost.tokens for phase, cost in lower_bound.items()},
            "flops": flops,
            "flops_lower_bound": sum(map(self.shape.flops, lower_bound.values())),
            "share_of_matrix_rate": round(flops / wall_s / rate, 4),
            "peak_mib": round(max(run.timing["peak_mib"] for run in runs), 1),
            **run.details,
        }


def sum_costs(costs: Iterable[Mapping[Phase, Cost]]) -> dict[Phase, Cost]:
    """Costs by phase, added up."""
    total: dict[Phase, Cost] = {}
    for by_phase in costs:
        for phase, cost in by_phase.items():
            total[phase] = total.get(phase, Cost()) + cost
    return total


def compare_calls(
    first: Sequence[Sequence[Call]], second: Sequence[Sequence[Call]], tau_f: float
) -> dict[str, Any]:
    """Whether two systems kept the same calls of the same texts, and how far the losses of the
    calls that both scored lie apart (nats)."""
    by_key = [_by_key(first), _by_key(second)]
    kept_keys = [{key for key, call in calls.items() if kept(call, tau_f)} for calls in by_key]
    both = [(by_key[0][key], by_key[1][key]) for key in by_key[0].keys() & by_key[1].keys()]
    losses = [(a.l_plus, b.l_plus) for a, b in both] + [(a.l_empty, b.l_empty) for a, b in both]
    losses += [(a.l_call, b.l_call) for a, b in both if a.l_call is not None and b.l_call is not None]
    return {
        "scored": [len(calls) for calls in by_key],
        "scored_by_both": len(both),
        "kept": [len(keys) for keys in kept_keys],
        "kept_by_both": len(kept_keys[0] & kept_keys[1]),
        "same_kept": kept_keys[0] == kept_keys[1],
        "max_loss_difference": max((abs(a - b) for a, b in losses), default=0.0),
    }


def _by_key(texts: Sequence[Sequence[Call]]) -> dict[Any, Call]:
    return {
        (number, call.tool, call.position, call.input, call.result): call
        for number, calls in enumerate(texts)
        for call in calls
    }


def speedups(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The engine's texts/s over another system's, each with its best number of processes."""
    best: dict[str, float] = {}
    for row in rows:
        name = row["system"].split(",")[0]
        best[name] = max(best.get(name, 0.0), row["texts_per_s"])
    others = [
        name for name in ("plain procedure", *(each.name for each in OPPONENTS.values())) if name in best
    ]
    return {other: round(best["engine"] / best[other], 3) for other in others}


def format_row(row: dict[str, Any]) -> str:
    """One system in one line."""
    comparison = row["compared_with_engine"]
    verdict = "the same" if comparison["same_kept"] else "NOT THE SAME"
    return (
        f"{row['system']:38} {row['texts']:4} texts {row['texts_per_s']:8.3f}/s "
        f"{row['texts_per_cpu_s']:8.3f}/cpu-s {row['candidates_per_s']:8.1f} candidates/s "
        f"{row['tokens_per_text']:8.0f} tokens/text = {row['tokens_per_lower_bound']:6.3f} x lower bound, "
        f"{100 * row['share_of_matrix_rate']:5.1f} % of the matrix rate, {row['peak_mib']:6.0f} MiB; "
        f"kept {comparison['kept'][1]}, {verdict}, losses within {comparison['max_loss_difference']:.0e}"
    )


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The systems of all models, data types and tools, one in a line."""
    header = ("model", "data type", "tool", "system", "texts/s", "of each round", "engine /", "tokens/text")
    lines = [(*header, "of matrix rate", "MiB", "kept", "same", "losses within")]
    for run in measured:
        for row in run["systems"]:
            comparison = row["compared_with_engine"]
            other = row["system"].split(",")[0]
            speedup = run["engine_speedup"].get(other)
            lines.append(
                (
                    str(run["model"]).rstrip("/").rpartition("/")[2],
                    run["dtype"],
                    run["tool"],
                    row["system"],
                    f"{row['texts_per_s']:.3f}",
                    " ".join(f"{rate:.3f}" for rate in row["texts_per_s_by_round"]),
                    "" if speedup is None else f"{speedup:.2f}",
                    f"{row['tokens_per_text']:.0f}",
                    f"{100 * row['share_of_matrix_rate']:.0f} %",
                    f"{row['peak_mib']:.0f}",
                    str(comparison["kept"][1]),
                    "yes" if comparison["same_kept"] else "NO",
                    f"{comparison['max_loss_difference']:.0e}",
                )
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
