"""A try for programs: one JSON object per text, then one with the summary (docs/trying.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.trying.advice import advice
from pipeline.trying.summary import Stage, Summary
from pipeline.trying.trial import Draw, Position, Trial


def trial_line(trial: Trial, tau_s: float) -> dict[str, Any]:
    """Everything about a text: all positions in I and the likeliest others, with all draws."""
    text = trial.annotation.text
    return {
        "type": "text",
        "text_id": text.text_id,
        "document": asdict(text.document),
        "text": text.text,
        "selection": trial.selection.rule,
        "date": trial.selection.date,
        "failed": trial.failed,
        "p_api": list(trial.p_api),
        "passing": sum(p_api > tau_s for p_api in trial.p_api),
        "positions": [_position(position) for position in trial.positions],
    }


def summary_line(summary: Summary, tool: str, seconds: float) -> dict[str, Any]:
    """The funnel, the gains, other thresholds, and the advice."""
    return {
        "type": "summary",
        "tool": tool,
        "settings": summary.settings.model_dump(mode="json"),
        "seconds": round(seconds, 1),
        "texts": summary.texts,
        "failed": summary.failed,
        "stages": [_stage(stage) for stage in summary.stages],
        "gain_quantiles": {f"{q:g}": gain for q, gain in summary.gain_quantiles().items()},
        "texts_kept_at_tau_f": {f"{at:g}": number for at, number in summary.texts_kept_at().items()},
        "texts_located_at_tau_s": {f"{at:g}": number for at, number in summary.texts_located_at().items()},
        "advice": list(advice(summary, tool)),
    }


def _position(position: Position) -> dict[str, Any]:
    return {
        "rank": position.rank,
        "position": position.position,
        "p_api": position.p_api,
        "chosen": position.chosen,
        "draws": [_draw(draw) for draw in position.draws],
    }


def _draw(draw: Draw) -> dict[str, Any]:
    fields = ("l_empty", "l_plus", "l_call", "gain", "p_name")
    return {
        "written": draw.written,
        "count": draw.count,
        "input": draw.input,
        "result": draw.result,
        "lost": draw.lost,
        **{name: getattr(draw.call, name, None) for name in fields},
        "kept": draw.kept,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {"name": stage.name, "in": stage.entered, "out": stage.left, "lost": stage.lost}
