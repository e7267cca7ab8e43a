"""Results from several files of `evaluate`, as one. In: paths. Out: an `Evaluation`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.results import Evaluation, EvaluationError, ModelResult


def read_evaluations(paths: Sequence[Path]) -> Evaluation:
    """The models of all files.

    A label may be in several files if it is the same model there, with the same settings, on different
    benchmarks. Raises EvaluationError, which names the files.
    """
    models: dict[str, ModelResult] = {}
    source: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file; name an evaluation.json that evaluate wrote")
        found = Evaluation.read(path).models
        if not found:
            raise EvaluationError(f"{path}: no results; run evaluate first")
        for label, model in found.items():
            models[label] = (
                _joined(label, models[label], model, source[label], path) if label in models else model
            )
            source.setdefault(label, path)
    return Evaluation(models=models)


def _joined(label: str, first: ModelResult, second: ModelResult, one: Path, other: Path) -> ModelResult:
    """Both results of one label. Raises EvaluationError if they contradict each other."""
    settings = [(model.model, model.k, model.disabled, model.tools_off) for model in (first, second)]
    twice = sorted(
        {*first.benchmarks, *first.running_texts}.intersection([*second.benchmarks, *second.running_texts])
    )
    if first.perplexity is not None and second.perplexity is not None:
        twice.append("perplexity")
    if settings[0] != settings[1] or twice:
        problem = f"{twice[0]} in both" if settings[0] == settings[1] else "another model or other settings"
        raise EvaluationError(
            f"the label {label} is in {one} and in {other}, with {problem}: evaluate one of them under "
            "another label"
        )
    update: dict[str, object] = {
        "benchmarks": {**first.benchmarks, **second.benchmarks},
        "running_texts": {**first.running_texts, **second.running_texts},
    }
    if first.perplexity is None:
        update |= {"perplexity": second.perplexity, "held_out": second.held_out}
    return first.model_copy(update=update)
