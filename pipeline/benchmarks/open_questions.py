"""WebQuestions, Natural Questions (open) and TriviaQA: questions without a text (paper section 4.2.3).

All published forms are read: JSON lines and JSON arrays (`question` or `qText` or `utterance`, with
`answer` or `answers`), WebQuestions' `targetValue`, TriviaQA's own JSON (value and aliases), and DPR's
tables (question, tab, a Python list). A question mark is added to a question without one.
"""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.benchmarks.example import BenchmarkFileError, Example, Examples, flat_strings, text_of
from pipeline.benchmarks.files import Record, one_file, read_records, read_text
from pipeline.benchmarks.forms import QUESTIONS, expected
from tools_service.base.printable import printable

_QUESTIONS = ("question", "qText", "utterance", "Question")
_ANSWERS = ("answers", "answer", "targetValue", "Answer")
_IDS = ("qId", "id", "question_id", "QuestionId")
_ALIASES = ("Value", "Aliases", "HumanAnswers", "value", "aliases", "human_answers")
_DESCRIPTION = re.compile(r'\(description\s+(?:"((?:[^"\\]|\\.)*)"|([^()\s]+))\s*\)')
_TABLES = ("csv", "tsv")
_MAX_CELL = 2**27


def open_questions(name: str, source: Path) -> Examples:
    """The questions of one file."""
    path = one_file(name, source, ("json", "jsonl", *_TABLES))
    suffixes = [suffix[1:] for suffix in path.suffixes[-2:]]
    if not set(suffixes).isdisjoint(_TABLES):
        return Examples([_example("", *row) for row in _table(name, path)])
    examples = []
    for record in read_records(name, path, QUESTIONS):
        question_field, answer_field = (
            next(field for field in fields if field in record.value) for fields in (_QUESTIONS, _ANSWERS)
        )
        question = text_of(record.value[question_field], question_field, record.where)
        identity = next((str(record.value[field]) for field in _IDS if record.value.get(field)), "")
        examples.append(_example(identity, question, _answers(record, answer_field)))
    if not any(example.answers for example in examples):
        raise BenchmarkFileError(f"{path}: {name} expects answers, and no question has one")
    return Examples(examples)


def _example(identity: str, question: str, answers: list[str]) -> Example:
    question = question if question.endswith("?") else f"{question}?"
    return Example(identity, "", question, tuple(dict.fromkeys(answers)))


def _answers(record: Record, field: str) -> list[str]:
    value: Any = record.value[field]
    if isinstance(value, Mapping):  # TriviaQA
        value = [value.get(name) for name in _ALIASES]
    if field == "targetValue" and isinstance(value, str):
        return [_unquoted(*match) for match in _DESCRIPTION.findall(value)]
    return flat_strings(value, record.where)


def _unquoted(quoted: str, bare: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted) or bare


def _table(name: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Question and answers of each line of a DPR table; a line with the columns' names is skipped."""
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    rows = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {reader.line_num}"
            wanted = f"{name} expects a question, a tab and a list of answers, or {expected(QUESTIONS)}"
            if len(cells) != 2:
                raise BenchmarkFileError(f"{where}: {wanted}; found {len(cells)} cells")
            if not rows and cells[0] in _QUESTIONS and cells[1] in _ANSWERS:
                continue
            rows += 1
            try:
                answers = ast.literal_eval(cells[1].strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                answers = None
            if not isinstance(answers, list | tuple):
                raise BenchmarkFileError(f"{where}: {wanted}; found {printable(cells[1], 60)!r}")
            yield cells[0].strip(), flat_strings(answers, where)
    except csv.Error as error:
        raise BenchmarkFileError(f"{path}, line {reader.line_num}: no table of cells: {error}") from error
    if not rows:
        raise BenchmarkFileError(f"{path}: holds no question")
