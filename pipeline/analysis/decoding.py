"""Decoding with several k: accuracy of all inputs, of those with a call (AC) and without (NC), and the
share of inputs with a call (paper section 5, Table 9). In: the results of `evaluate`. Out: a table.
"""

from __future__ import annotations

from pipeline.analysis.paper_figures import DecodingFigures, paper_figures
from pipeline.analysis.result_table import Cell, ResultTable, Row, with_best
from pipeline.analysis.scores import interval_of
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult

_MEASURES = (("", "All"), ("", "AC"), ("", "NC"), ("", "Calls"))
_NOTE = "Percent right of all inputs, of those with a call (AC) and without (NC); percent of inputs with one."


def decoding_tables(
    evaluation: Evaluation, *, intervals: bool = False, paper: bool = True
) -> list[ResultTable]:
    """A table for each benchmark, a row for each label, by model and k; disabled calls come first.

    With the paper's rows if its table has the benchmark.
    """
    models = sorted(evaluation.models.items(), key=lambda entry: _order(entry[1]))
    reported = {figures.benchmark: figures for figures in paper_figures().decoding}
    tables = []
    for name in dict.fromkeys(name for _, model in models for name in model.benchmarks):
        rows = [_row(label, model, model.benchmarks.get(name), intervals) for label, model in models]
        if paper and name in reported:
            rows += _paper_rows(reported[name])
        title = f"Decoding with several k: {paper_figures().title(name)} (Table 9, section 5)"
        # The other measures are about different inputs in each row.
        marked = with_best(rows, every=len(_MEASURES))
        tables.append(ResultTable(title, ("Model", "k"), _MEASURES, marked, (_NOTE,)))
    return tables


def _order(model: ModelResult) -> tuple[str, bool, int]:
    return model.model, not model.disabled, model.k


def _row(label: str, model: ModelResult, result: BenchmarkResult | None, intervals: bool) -> Row:
    titles = label, "disabled" if model.disabled else str(model.k)
    if result is None:
        return Row(titles, (Cell(),) * len(_MEASURES))
    cells = (
        Cell.percent(result.accuracy, interval_of(result) if intervals else None),
        Cell.percent(result.accuracy_with_call),
        Cell.percent(result.accuracy_without_call),
        Cell.percent(result.calls / result.n),
    )
    return Row(titles, cells)


def _paper_rows(figures: DecodingFigures) -> list[Row]:
    title = f"{paper_figures().rows['toolformer']} (paper)"
    return [
        Row(
            (title, str(setting.k)),
            tuple(map(Cell.number, (setting.all, setting.with_call, setting.without_call, setting.calls))),
            paper=True,
        )
        for setting in figures.settings
    ]
