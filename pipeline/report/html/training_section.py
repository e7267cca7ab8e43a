"""The section of a report about a run of finetune, finished or not (paper section 4.1, Appendix B).

In: the folder of the run: its manifest, or checkpoints/run.json while it trains, and metrics.jsonl. Out: the
curves, thinned where they are long; the least and the largest value of every stretch stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.base.finetune_config import SelectBy
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest, RunIdentity
from pipeline.finetuning.evaluation.choice import best_of
from pipeline.finetuning.watching.metrics_log import Event, evaluations_of, numbers, read_events
from pipeline.report.html.data import Curve, Fact, TrainingSection
from pipeline.report.losses import finetune_losses

CURVES = {
    "loss": "loss",
    "held_out_loss": "held-out loss",
    "plain_loss": "held-out loss without calls",
    "perplexity": "perplexity",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "flops_per_s": "FLOP/s of the model",
    "hardware_flops_per_s": "FLOP/s with recomputation",
    "utilisation": "FLOP utilisation",
    "memory_bytes": "memory in bytes",
    "seconds": "seconds of a step",
    "same_tool": "probe: calls of the tool in C*",
    "malformed": "probe: malformed calls",
    "unfinished": "probe: unfinished calls",
    "without_call": "probe: prompts without a call",
}
"""Names of the values in metrics.jsonl, and of their curves; others have their own name, with spaces."""
_NO_CURVE = ("tokens", "plain_tokens", "prompts", "expected/")  # of the held-out texts: they never change
_MAX_POINTS = 2_000
_STRETCHES = _MAX_POINTS // 2 - 1


def training_section(folder: Path) -> TrainingSection:
    """Read the run in `folder`. Raises ConfigurationError if its manifest or run.json cannot be read."""
    run_folder = RunFolder(folder)
    run = run_folder.identity()
    finished = isinstance(run, FinetuneManifest)
    events, damage = read_events(run_folder.metrics)
    losses = (*damage, *(finetune_losses(run) if isinstance(run, FinetuneManifest) else ()))
    return TrainingSection(
        name=folder.resolve().name,
        folder=str(folder),
        state="finished" if finished else "unfinished",
        facts=tuple(_facts(run, events)),
        curves=tuple(_curves(events)),
        best_step=run.best.step
        if isinstance(run, FinetuneManifest)
        else best_step(events, run.config.select_by),
        losses=losses,
    )


def best_step(events: Sequence[Event], select_by: SelectBy) -> int | None:
    """The step that `finetune` would choose so far: the first of equal ones, and never step 0."""
    best = best_of(evaluations_of(events), select_by)
    return None if best is None else best.step


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about 2,000 of the points in their order: the first, the last, and the extremes between."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    kept = {0, len(points) - 1}
    edges = [len(points) * number // _STRETCHES for number in range(_STRETCHES + 1)]
    for start, end in pairwise(edges):
        stretch = range(start, end)
        kept.add(min(stretch, key=lambda index: points[index][1]))
        kept.add(max(stretch, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def _curves(events: Sequence[Event]) -> Iterator[Curve]:
    """A curve for every number in the lines, those of a group such as calls by tool included."""
    points: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for key, value in numbers(event).items():
            points.setdefault(key, []).append((event["step"], value))
    others = [key for key in points if key not in CURVES and not key.startswith(_NO_CURVE)]
    for key in (*(key for key in CURVES if key in points), *others):
        steps, values = zip(*thinned(points[key]), strict=True)
        group, separator, name = key.partition("/")
        title = CURVES.get(key, f"{group.replace('_', ' ')}{separator and ': '}{name}")
        yield Curve(name=title, steps=steps, values=values)


def _facts(run: RunIdentity, events: Sequence[Event]) -> Iterator[Fact]:
    config = run.config
    done = max((event["step"] for event in events), default=0)
    yield Fact(name="model before", value=config.model.path)
    yield Fact(name="texts", value=f"{config.data}, column {config.column}")
    early = isinstance(run, FinetuneManifest) and run.stopped_early
    steps = f"stopped early at step {done:,} of" if early else f"{done:,} of"
    yield Fact(name="steps", value=f"{steps} {config.max_steps:,}")
    yield Fact(name="texts per step (batch_size)", value=f"{config.batch_size:,}")
    yield Fact(name="learning rate", value=f"{config.learning_rate:g}, warm-up {config.warmup_share:.0%}")
    yield Fact(name="tokens per text (sequence_length)", value=f"{config.sequence_length:,}")
    device = "GPU" if config.use_gpu else "CPU"
    yield Fact(name="workers", value=f"{config.workers} ({device}), ZeRO stage {config.zero_stage}")
    yield Fact(name="seed", value=str(config.seed))
    if not isinstance(run, FinetuneManifest):
        return
    texts = run.texts
    yield Fact(name="texts trained on", value=f"{texts.get('trained_on', 0):,}")
    yield Fact(name="texts held out", value=f"{texts.get('held_out', 0):,}")
    best = run.best
    chosen_by = config.select_by if best.plain_loss is not None else "loss"  # as earlier versions did
    value = f"step {best.step:,}, held-out perplexity {best.perplexity:.3f}, chosen by {chosen_by}"
    yield Fact(name="best", value=value)
    yield Fact(name="time of the last start", value=f"{run.wall_s:,.0f} s")
    yield Fact(name="made", value=run.created)
    yield Fact(name="version", value=run.versions.get("toolformer-on-ray", "unknown"))
