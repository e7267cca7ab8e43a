"""What all trials say together: how many texts, draws and calls each stage leaves, and what to change.

In: the trials of a run. Out: a `Summary`, all numbers of which are counts and gains of the trials; advice.py
reads it. Nothing is computed by a model here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.method.merging import THRESHOLDS
from pipeline.trying.scan import Scan
from pipeline.trying.trial import Trial
from tools_service.contract.spec import ToolMethod

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TAU_F = (0.0, 0.25, *THRESHOLDS)
TAU_S = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2)
TOOL_REASON = "tool: "


@dataclass(frozen=True, slots=True)
class Stage:
    """Of `entered` texts, draws or calls `left` go on; `lost` has the others by reason."""

    name: str
    entered: int
    left: int
    lost: dict[str, int]

    @property
    def share_lost(self) -> float:
        """0 if nothing entered."""
        return 1 - self.left / self.entered if self.entered else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """The trials in numbers. Gains are in nats."""

    settings: ToolMethod
    scan: Scan
    texts: int
    failed: dict[str, int]
    """Texts that failed, by reason."""
    selected: Stage  # texts
    located: Stage  # texts with a position
    well_formed: Stage  # draws
    answered: Stage  # distinct calls with a result
    scored: Stage  # distinct calls
    kept: Stage  # distinct calls
    texts_kept: Stage
    gains: tuple[float, ...]
    """Of the scored calls, rising."""
    best_gains: tuple[float, ...]
    """The largest gain of each text with a scored call."""
    best_p_api: tuple[float, ...]
    """The largest p(<API>) of each text."""
    full: int
    """Texts with more positions above tau_s than k."""
    kept_at_last: int
    """Kept calls at the least likely of k positions."""
    kept_drawn_once: int
    """Kept calls that one draw of m wrote."""

    @staticmethod
    def of(trials: Sequence[Trial], scan: Scan, settings: ToolMethod) -> Summary:
        """Of the trials done so far."""
        done = [trial for trial in trials if trial.failed is None]
        draws = [draw for trial in done for position in trial.positions for draw in position.draws]
        calls = [draw for draw in draws if draw.input is not None]
        answered = [draw for draw in calls if draw.result is not None]
        scored = [draw.call for draw in answered if draw.call is not None]
        kept = [draw for draw in calls if draw.kept]
        with_kept = sum(bool(trial.kept(settings.tau_f)) for trial in done)
        located = sum(any(position.chosen for position in trial.positions) for trial in done)
        malformed = Counter[str]()
        for draw in draws:
            if draw.input is None and draw.lost is not None:
                malformed[draw.lost] += draw.count
        drawn = sum(draw.count for draw in draws)
        no_answer = Counter(draw.lost or "" for draw in calls if draw.result is None)
        not_scored = Counter(draw.lost or "" for draw in answered if draw.call is None)
        return Summary(
            settings=settings,
            scan=scan,
            texts=len(trials),
            failed=dict(Counter(trial.failed for trial in trials if trial.failed is not None)),
            selected=Stage("texts selected", scan.looked_at, len(scan.selected), scan.turned_down),
            located=_stage("texts with a position", len(done), located, "p(<API>) not above tau_s"),
            well_formed=Stage(
                "draws that are calls", drawn, drawn - malformed.total(), _by_number(malformed)
            ),
            answered=Stage("calls with a result", len(calls), len(answered), _by_number(no_answer)),
            scored=Stage("calls scored", len(answered), len(scored), _by_number(not_scored)),
            kept=_stage("calls kept", len(scored), len(kept), "gain below tau_f"),
            texts_kept=_stage("texts with a kept call", len(done), with_kept, "no kept call"),
            gains=tuple(sorted(call.gain for call in scored)),
            best_gains=tuple(
                max(call.gain for call in trial.annotation.calls) for trial in done if trial.annotation.calls
            ),
            best_p_api=tuple(trial.p_api[0] for trial in done if trial.p_api),
            full=sum(_passing(trial, settings.tau_s) > settings.k for trial in done),
            kept_at_last=sum(_kept_at_last(trial, settings.k) for trial in done),
            kept_drawn_once=sum(draw.count == 1 for draw in kept),
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order of the method."""
        return (
            self.selected,
            self.located,
            self.well_formed,
            self.answered,
            self.scored,
            self.kept,
            self.texts_kept,
        )

    def gain_quantiles(self) -> dict[float, float]:
        """Of the scored calls; empty without any."""
        if not self.gains:
            return {}
        return dict(zip(QUANTILES, np.quantile(self.gains, QUANTILES).tolist(), strict=True))

    def texts_kept_at(self, thresholds: Iterable[float] = TAU_F) -> dict[float, int]:
        """Texts with a kept call for each tau_f, this tool's among them."""
        at = sorted({*thresholds, self.settings.tau_f})
        return {tau_f: sum(gain >= tau_f for gain in self.best_gains) for tau_f in at}

    def texts_located_at(self, thresholds: Iterable[float] = TAU_S) -> dict[float, int]:
        """Texts with a position for each tau_s, this tool's among them."""
        at = sorted({*thresholds, self.settings.tau_s})
        return {tau_s: sum(p_api > tau_s for p_api in self.best_p_api) for tau_s in at}


def _stage(name: str, entered: int, left: int, reason: str) -> Stage:
    return Stage(name, entered, left, {reason: entered - left} if left < entered else {})


def _by_number(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def _passing(trial: Trial, tau_s: float) -> int:
    return sum(p_api > tau_s for p_api in trial.p_api)


def _kept_at_last(trial: Trial, k: int) -> int:
    chosen = [position for position in trial.positions if position.chosen]
    return sum(draw.kept for draw in chosen[-1].draws) if len(chosen) == k > 1 else 0
