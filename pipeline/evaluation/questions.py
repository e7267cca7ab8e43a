"""Questions: what every benchmark becomes, and the project's own file format for them.

A question file is jsonl, one question a line:

    {"id": "calc-17", "prompt": "… The answer is", "answers": ["35"], "scoring": "number", "date": null}

`prompt` is what the model continues, `answers` the texts that count as right, `scoring` a name of
scoring.py, `date` (optional, YYYY-MM-DD) the day on which the question is asked, `tool` (optional) the tool
expected to help: it is reported, never used. `tools_off` (optional, the same in all lines) names tools that
must not be called, because they would give the benchmark away. In: paths. Out: a Benchmark, or a
QuestionError that names file, line and field. Readers of published formats produce the same records from
modules of their own beside this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipeline.evaluation.scoring import ScoringError, check_scoring
from tools_service.base.errors import ConfigurationError
from tools_service.tools.contract import TOOL_NAMES, ToolName

_REQUIRED = ("id", "prompt", "answers", "scoring")
_OPTIONAL = ("date", "tool", "tools_off")


class QuestionError(ConfigurationError):
    """A question file that cannot be used; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt with the answers that count as right. `date` is ISO, the question's own current day."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    scoring: str
    date: str | None = None
    tool: ToolName | None = None
    tools_off: frozenset[ToolName] = frozenset()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named list of questions. `tools_off` would give the benchmark away (paper section 4.2.1)."""

    name: str
    questions: tuple[Question, ...]
    tools_off: frozenset[ToolName] = frozenset()


def read_benchmark(path: Path) -> Benchmark:
    """The questions of one jsonl file; the benchmark is called like the file."""
    questions: list[Question] = []
    seen: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: cannot be read as a question file in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}, line {number}")
        if question.id in seen:
            first = seen[question.id]
            raise QuestionError(f"{path}, line {number}: id {question.id!r} is also that of line {first}")
        seen[question.id] = number
        questions.append(question)
    if not questions:
        raise QuestionError(f"{path}: holds no question")
    other = next((q for q in questions if q.tools_off != questions[0].tools_off), None)
    if other is not None:
        raise QuestionError(f"{path}: tools_off of {other.id!r} is not that of {questions[0].id!r}")
    return Benchmark(path.stem, tuple(questions), questions[0].tools_off)


def _parse(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise QuestionError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise QuestionError(f"{where}: expected an object with the fields {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED if name not in row]
    unknown = sorted(set(row) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        problem = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}"
        raise QuestionError(f"{where}: fields {problem}; a question has {', '.join(_REQUIRED + _OPTIONAL)}")
    answers = row["answers"]
    texts = isinstance(answers, list) and all(
        isinstance(answer, str) and answer.strip() for answer in answers
    )
    if not answers or not texts:
        raise QuestionError(f"{where}: answers must be a list of one or more texts")
    question = Question(
        id=_text(row, "id", where),
        prompt=_text(row, "prompt", where),
        answers=tuple(answers),
        scoring=_text(row, "scoring", where),
        date=_date(row.get("date"), where),
        tool=_tool(row.get("tool"), where),
        tools_off=_tools_off(row.get("tools_off"), where),
    )
    try:
        check_scoring(question.scoring, question.answers)
    except ScoringError as error:
        raise QuestionError(f"{where}: scoring: {error}") from error
    return question


def _text(row: Mapping[str, object], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise QuestionError(f"{where}: {field} must be a text that is not blank, got {value!r}")
    return value


def _date(value: object, where: str) -> str | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise QuestionError(f"{where}: date must be YYYY-MM-DD or null, got {value!r}") from error


def _tool(value: object, where: str) -> ToolName | None:
    if value is None:
        return None
    for tool in TOOL_NAMES:
        if tool == value:
            return tool
    raise QuestionError(f"{where}: tool must be one of {', '.join(TOOL_NAMES)} or null, got {value!r}")


def _tools_off(value: object, where: str) -> frozenset[ToolName]:
    if value is None:
        return frozenset()
    if not isinstance(value, list):
        raise QuestionError(f"{where}: tools_off must be a list of tools or null, got {value!r}")
    found = [_tool(one, where) for one in value]
    return frozenset(one for one in found if one is not None)
