"""Result tables as Markdown, LaTeX (booktabs) and CSV. Names of models and files are escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from pipeline.analysis.result_table import DASH, Cell, ResultTable, Row
from tools_service.base.printable import printable

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#])")
_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    DASH: "--",
    "[": "{[}",
    "*": "{*}",  # after a line's end they would be its argument
}
_FORMULA = ("=", "+", "-", "@")  # at the beginning of a cell, for a spreadsheet
_SPACE = re.compile(r"\s+")


def markdown(tables: Iterable[ResultTable]) -> str:
    """A heading and a table each."""
    return "\n".join(_markdown(table) for table in tables)


def latex(tables: Iterable[ResultTable]) -> str:
    r"""A `table` each; the document needs \usepackage{booktabs}."""
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(_latex(table) for table in tables)


def comma_separated(tables: Iterable[ResultTable]) -> str:
    """One block of lines per table, with a line of headings; an empty line between two tables.

    A value that is missing is empty; numbers have neither commas nor marks.
    """
    return "\n".join(_csv(table) for table in tables)


FORMATS: dict[str, Callable[[Iterable[ResultTable]], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}


def escape_latex(text: str) -> str:
    """`text` on one line, with nothing that TeX would interpret."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def escape_markdown(text: str) -> str:
    """`text` on one line, with nothing that a table of Markdown would interpret."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return printable(_SPACE.sub(" ", text))


def _markdown(table: ResultTable) -> str:
    heading = [*table.row_titles, *(f"{group} {name}".strip() for group, name in table.columns)]
    rule = [":--"] * len(table.row_titles) + ["--:"] * len(table.columns)
    lines = [f"**{escape_markdown(table.title)}**", "", _line(map(escape_markdown, heading)), _line(rule)]
    for row in table.rows:
        titles = [escape_markdown(title) for title in row.titles]
        marked = [f"*{title}*" for title in titles] if row.paper else titles
        lines.append(_line([*marked, *(_bold(cell, "**{}**", escape_markdown) for cell in row.cells)]))
    lines += [line for note in table.notes for line in ("", escape_markdown(note))]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _bold(cell: Cell, form: str, escape: Callable[[str], str]) -> str:
    text = escape(cell.shown)
    return form.format(text) if cell.best else text


def _latex(table: ResultTable) -> str:
    columns = "l" * len(table.row_titles) + "r" * len(table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *_latex_heading(table), r"\midrule"]
    for number, row in enumerate(table.rows):
        if number and row.paper and not table.rows[number - 1].paper:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_heading(table: ResultTable) -> list[str]:
    """The line of groups with its rules if there are groups, then the line of columns."""
    names = _latex_line([*map(escape_latex, table.row_titles), *(escape_latex(c) for _, c in table.columns)])
    if not any(group for group, _ in table.columns):
        return [names]
    first = len(table.row_titles) + 1
    groups, rules = [""] * len(table.row_titles), []
    for group, members in groupby(table.columns, key=lambda column: column[0]):
        width = len(list(members))
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_latex_line(groups), "".join(rules), names]


def _latex_row(row: Row) -> str:
    titles = [escape_latex(title) for title in row.titles]
    marked = [rf"\textit{{{title}}}" for title in titles] if row.paper else titles
    return _latex_line([*marked, *(_bold(cell, r"\textbf{{{}}}", escape_latex) for cell in row.cells)])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _csv(table: ResultTable) -> str:
    """Bounds of intervals have columns of their own."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    names = [f"{group} {name}".strip() for group, name in table.columns]
    bounded = [any(row.cells[n].interval for row in table.rows) for n in range(len(names))]
    headings = [*table.row_titles, "source"]
    for name, has_bounds in zip(names, bounded, strict=True):
        headings += [name, f"{name} low", f"{name} high"] if has_bounds else [name]
    writer.writerow(map(_csv_text, headings))
    for row in table.rows:
        values: list[str] = [*map(_csv_text, row.titles), "paper" if row.paper else "measured"]
        for cell, has_bounds in zip(row.cells, bounded, strict=True):
            bounds = cell.interval or (None, None)
            values += map(_csv_number, (cell.value, *bounds) if has_bounds else (cell.value,))
        writer.writerow(values)
    return output.getvalue()


def _csv_text(text: str) -> str:
    text = _one_line(text)
    return "'" + text if text.startswith(_FORMULA) else text


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
