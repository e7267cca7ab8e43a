"""The paper's tables 3 to 8 for measured models, beside the paper's own figures (sections 4.2, 4.3).

In: the results of `evaluate`. Out: one `ResultTable` for each of the paper's tables, and one for all
other benchmarks. A benchmark that was not run is a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.analysis.paper_figures import HELD_OUT, PERPLEXITY, TableFigures, paper_figures
from pipeline.analysis.result_table import Cell, ResultTable, Row, with_best
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult
from tools_service.base.errors import ConfigurationError

OTHER = "other"
TABLES = (*(table.name for table in paper_figures().table), OTHER)
"""The tables of scores."""
_OURS = {
    "base": "Base model",
    "plain": "Base model + CC",
    "disabled": "Toolformer (disabled)",
    "toolformer": "Toolformer",
}


def score_tables(
    evaluation: Evaluation,
    names: Sequence[str] = (),
    *,
    rows: Mapping[str, str] | None = None,
    intervals: bool = False,
    paper: bool = True,
) -> list[ResultTable]:
    """The tables `names`; if there is none, each table for which a result exists.

    `rows` maps labels to rows of the paper (base, plain, disabled, toolformer); a label with the name
    of a row needs no entry. Raises ConfigurationError for a label that does not exist.
    """
    models = _ordered(evaluation, rows or {})
    reported = [_with_own_texts(figures, evaluation.models.values()) for figures in paper_figures().table]
    tables = [_table(figures, models, intervals, paper) for figures in reported]
    tables.append(_table(_others(evaluation.models.values()), models, intervals, paper=False))
    return [
        table
        for name, table in zip(TABLES, tables, strict=True)
        if (name in names if names else _has_results(table))
    ]


def interval_of(result: BenchmarkResult) -> tuple[float, float]:
    """The stored 95 % interval; computed for old files."""
    return result.interval or wilson(round(result.accuracy * result.n), result.n)


def _ordered(evaluation: Evaluation, rows: Mapping[str, str]) -> list[tuple[str, ModelResult]]:
    """The models with their titles: the paper's rows in its order, then the others."""
    order = list(paper_figures().rows)
    for label, row in rows.items():
        if label not in evaluation.models:
            known = ", ".join(evaluation.models) or "none"
            raise ConfigurationError(f"--rows {label} {row}: no model has this label; the labels are {known}")
    row_of = {label: rows.get(label, label) for label in evaluation.models}
    labels = [label for row in order for label in evaluation.models if row_of[label] == row]
    labels += [label for label in evaluation.models if row_of[label] not in order]
    titles = {
        label: f"{_OURS[row]} ({label})" if label in rows and row != label else _OURS.get(row, label)
        for label, row in row_of.items()
    }
    return [(titles[label], evaluation.models[label]) for label in labels]


def _table(
    figures: TableFigures, models: Sequence[tuple[str, ModelResult]], intervals: bool, paper: bool
) -> ResultTable:
    lowest = figures.name == PERPLEXITY
    measured = [
        Row((title,), tuple(_cell(model, column, lowest, intervals) for column in figures.columns))
        for title, model in models
    ]
    reported = [
        Row(
            (f"{title} (paper)",),
            tuple(Cell.number(figures.of(row).get(column)) for column in figures.columns),
            paper=True,
        )
        for row, title in paper_figures().rows.items()
    ]
    rows = [*measured, *(reported if paper else [])]
    title = f"{figures.title} ({figures.source})" if figures.source else figures.title
    columns = tuple(("", name) for name in figures.columns.values())
    return ResultTable(title, ("Model",), columns, with_best(rows, lowest=lowest))


def _cell(model: ModelResult, column: str, is_perplexity: bool, intervals: bool) -> Cell:
    if not is_perplexity:
        result = model.benchmarks.get(column)
        if result is None:
            return Cell()
        return Cell.percent(result.accuracy, interval_of(result) if intervals else None)
    if column == HELD_OUT:
        return Cell.number(model.perplexity, 2)
    text = model.running_texts.get(column)
    return Cell.number(text.token_perplexity if text else None, 2)


def _with_own_texts(figures: TableFigures, models: Iterable[ModelResult]) -> TableFigures:
    """The table of perplexities with a column for each running text that the paper does not have."""
    if figures.name != PERPLEXITY:
        return figures
    texts = {name: name for model in models for name in model.running_texts}
    return figures.model_copy(update={"columns": {**figures.columns, **texts, **figures.columns}})


def _others(models: Iterable[ModelResult]) -> TableFigures:
    """The benchmarks that the paper does not have."""
    known = {column for table in paper_figures().table for column in table.columns}
    names = dict.fromkeys(name for model in models for name in model.benchmarks if name not in known)
    return TableFigures(
        name=OTHER, source="", title="Other benchmarks: percent right", columns={name: name for name in names}
    )


def _has_results(table: ResultTable) -> bool:
    return any(cell.value is not None for row in table.rows if not row.paper for cell in row.cells)
