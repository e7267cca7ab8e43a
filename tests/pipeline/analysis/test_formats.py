"""Tables as Markdown, LaTeX and CSV: names of models cannot break them."""

from __future__ import annotations

import csv
import io
import re

import pytest

from pipeline.analysis.formats import FORMATS, comma_separated, escape_latex, escape_markdown, latex, markdown
from pipeline.analysis.result_table import Cell, ResultTable, Row, with_best

pytestmark = pytest.mark.unit

HOSTILE = "a_b & 50% of $x$ #1 {c} ~^\\d | <e> [f]* `g`\nh"


def table(*rows: Row, columns: tuple[tuple[str, str], ...] = (("", "A"), ("", "B"))) -> ResultTable:
    return ResultTable("A title", ("Model",), columns, with_best(rows), ("A note.",))


def row(title: str, *values: float | None, paper: bool = False) -> Row:
    return Row((title,), tuple(Cell.number(value) for value in values), paper)


def test_markdown() -> None:
    assert markdown([table(row("one", 1, 2.25), row("two", 3, None), row("theirs", 9, 9, paper=True))]) == (
        "**A title**\n\n| Model | A | B |\n| :-- | --: | --: |\n| one | 1.0 | 2.2 |\n| two | **3.0** | – |\n"
        "| *theirs* | 9.0 | 9.0 |\n\nA note.\n"
    )


def test_latex() -> None:
    columns = (("", "Size"), ("QA", "with"), ("QA", "without"))
    text = latex(
        [table(row("one", 1, 2, 3), row("two", 2, None, 1), row("t", 5, 5, 5, paper=True), columns=columns)]
    )
    assert text == (
        "% Needs \\usepackage{booktabs}.\n"
        "\\begin{table}\n\\centering\n\\caption{A title}\n\\begin{tabular}{lrrr}\n\\toprule\n"
        " & \\multicolumn{1}{c}{} & \\multicolumn{2}{c}{QA} \\\\\n\\cmidrule(lr){3-4}\n"
        "Model & Size & with & without \\\\\n\\midrule\n"
        "one & 1.0 & 2.0 & \\textbf{3.0} \\\\\ntwo & \\textbf{2.0} & -- & 1.0 \\\\\n"
        "\\midrule\n\\textit{t} & 5.0 & 5.0 & 5.0 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\par\\smallskip\\footnotesize A note.\n\\end{table}\n"
    )


def test_latex_escapes_everything_that_tex_interprets() -> None:
    assert escape_latex(HOSTILE) == (
        r"a\_b \& 50\% of \$x\$ \#1 \{c\} \textasciitilde{}\textasciicircum{}\textbackslash{}d "
        r"\textbar{} \textless{}e\textgreater{} {[}f]{*} `g` h"
    )
    text = latex([table(row(HOSTILE, 1, 2), row("[2pt]", 1, 1))])
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in lines)
    assert lines[2].startswith("{[}2pt]"), "else it is an argument of the line's end before it"


def test_markdown_escapes_cells() -> None:
    text = markdown([table(row(HOSTILE, 1, 2))])
    (line,) = [line for line in text.splitlines() if "50%" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert escape_markdown("a_b|c*") == r"a\_b\|c\*"


def test_a_name_with_control_characters_reaches_no_terminal() -> None:
    for form in FORMATS.values():
        text = form([table(row("a\x1b[31m\x00\nb", 1, 2), columns=(("", "c\x1b"), ("", "d")))])
        assert not {"\x1b", "\x00"} & set(text)
        assert sum("1" in line and "31m" in line for line in text.splitlines()) == 1


def test_csv_has_plain_numbers_and_bounds_in_columns() -> None:
    first = Row(("=cmd()",), (Cell.percent(0.4, (0.3, 0.5)), Cell.number(2_705_472, 0)))
    second = Row(("b, c",), (Cell(), Cell()), paper=True)
    lines = list(csv.reader(io.StringIO(comma_separated([table(first, second)]))))
    assert lines == [
        ["Model", "source", "A", "A low", "A high", "B"],
        ["'=cmd()", "measured", "40", "30", "50", "2705472"],
        ["b, c", "paper", "", "", "", ""],
    ]


def test_several_tables_and_intervals() -> None:
    shown = Cell.percent(0.4, (0.3, 0.5))
    tables = [table(Row(("one",), (shown, Cell()))), table(row("two", 1, 2))]
    assert "| one | 40.0 (30.0–50.0) | – |" in markdown(tables)
    assert "one & 40.0 (30.0--50.0) & -- \\\\" in latex(tables)
    assert [form(tables).count("one") for form in FORMATS.values()] == [1, 1, 1]


def test_the_best_is_marked_apart_from_the_papers() -> None:
    rows = with_best(
        [row("a", 1, 5), row("b", 2, 5), row("p", 8, 1, paper=True), row("q", 9, None, paper=True)]
    )
    marks = [[cell.best for cell in each.cells] for each in rows]
    assert marks == [[False, False], [True, False], [False, False], [True, False]]
    assert with_best([row("a", 1), row("b", 2)], lowest=True)[0].cells[0].best
    assert not with_best([row("alone", 1)])[0].cells[0].best
    assert with_best([]) == ()


def test_values_that_are_shown_alike_are_marked_alike() -> None:
    rows = with_best([row("a", 40.04), row("b", 39.96)])
    assert [each.cells[0].best for each in rows] == [False, False], "equal values only"
    rows = with_best([row("a", 40.04), row("b", 39.96), row("c", 39.9)])
    assert [each.cells[0].best for each in rows] == [True, True, False]
    rows = with_best([row("a", 12345.04), row("b", 12344.96), row("c", 999)])
    assert [each.cells[0].best for each in rows] == [True, True, False]
