"""The section of a report about an evaluation (paper section 4), beside the paper's rows.

In: evaluation.json and the predictions beside it. Out: the table, and questions with their answers to read
(question_samples.py). Nothing is measured again; intervals that old files lack are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.analysis.paper_figures import PERPLEXITY, paper_figures
from pipeline.analysis.scores import interval_of
from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.evaluation.results import BenchmarkResult, Evaluation, EvaluationError, ModelResult
from pipeline.report.html.data import EvaluationRow, EvaluationSection, PaperRow, Score
from pipeline.report.html.question_samples import sampled_questions
from pipeline.report.losses import evaluation_losses


def evaluation_section(file: Path) -> tuple[EvaluationSection, list[str]]:
    """Read an evaluation, and what is wrong with its predictions, in sentences.

    Raises EvaluationError if `file` has no results.
    """
    models = Evaluation.read(file).models
    if not models:
        raise EvaluationError(f"{file}: no results yet; evaluate writes each as soon as it is there")
    labels = _ordered(list(models))
    benchmarks = list(dict.fromkeys(name for label in labels for name in models[label].benchmarks))
    paper = _paper_scores()
    questions, problems = sampled_questions(file, labels, benchmarks)
    section = EvaluationSection(
        file=str(file),
        benchmarks=tuple(benchmarks),
        rows=tuple(_row(label, models[label], paper.get(label, {})) for label in labels),
        paper=tuple(_paper_rows(benchmarks)),
        compared_with=next(
            (models[label].compared_with for label in labels if models[label].compared_with), None
        ),
        questions=tuple(questions),
    )
    return section, problems


def _ordered(labels: Sequence[str]) -> list[str]:
    """The paper's models in its order, then the others."""
    papers = [row for row in paper_figures().rows if row in labels]
    return papers + [label for label in labels if label not in papers]


def _paper_scores() -> dict[str, dict[str, float]]:
    """What the paper reports, by its row and benchmark."""
    scores: dict[str, dict[str, float]] = {row: {} for row in paper_figures().rows}
    for table in paper_figures().table:
        if table.name != PERPLEXITY:
            for row, figures in scores.items():
                figures.update(table.of(row))
    return scores


def _paper_rows(benchmarks: Sequence[str]) -> Iterator[PaperRow]:
    titles = paper_figures().rows
    for row, figures in _paper_scores().items():
        scores = {name: figures[name] for name in benchmarks if name in figures}
        if scores:
            yield PaperRow(label=titles[row], scores=scores)


def _row(label: str, model: ModelResult, paper: dict[str, float]) -> EvaluationRow:
    results = model.benchmarks
    return EvaluationRow(
        label=label,
        model=model.model,
        scores={name: _score(result, paper.get(name)) for name, result in results.items()},
        calls_by_tool={name: result.calls_by_tool for name, result in results.items()},
        failed_calls={name: sum(result.failed_calls.values()) for name, result in results.items()},
        perplexity=model.perplexity,
        losses=tuple(_losses(model)),
    )


def _score(result: BenchmarkResult, paper: float | None) -> Score:
    low, high = interval_of(result)
    return Score(
        value=100 * result.accuracy,
        low=100 * low,
        high=100 * high,
        n=result.n,
        calls=result.calls,
        p=result.paired.p if result.paired is not None else None,
        paper=paper,
    )


def _losses(model: ModelResult) -> Iterator[str]:
    """As evaluate says them. It knows more of its configuration than the file has."""
    try:
        generation = GenerateConfig(
            model=ModelConfig(path=model.model), k=model.k, disabled=model.disabled, tools_off=model.tools_off
        )
    except ValidationError:  # tools of the user's, declared in the configuration
        generation = GenerateConfig(k=model.k, disabled=model.disabled)
        model = model.model_copy(update={"tools_off": ()})
    yield from evaluation_losses(model, EvaluateConfig(generation=generation))
