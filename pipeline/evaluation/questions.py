"""Questions and benchmarks: published ones, and the project's own question files (step 8).

A question file is jsonl with one question a line:

    {"id": "calc-17", "prompt": "… The answer is", "answers": ["35"], "scoring": "number", "date": null}

The model continues `prompt`. `answers` are the texts that count as right under `scoring`
(scoring.py); one that the rule can never meet is left out there, and counted. Optional: `date`
(YYYY-MM-DD), the day of the question; `tool`, the tool that should help, which is not used;
`tools_off` (the same in all lines), tools that must not be called because they would give the
answers away. The published files are read in pipeline.benchmarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError, field_validator

from pipeline.benchmarks.published import PublishedBenchmark
from pipeline.evaluation.scoring import check_scoring, usable_answers
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.printable import printable
from tools_service.base.settings import Frozen, IsoDate, Text
from tools_service.contract.declarations import with_installed


class QuestionError(ConfigurationError):
    """A question file that cannot be used; the message names file, line and field."""


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _without_surrogates(value: Any) -> Any:
    """A lone surrogate is half a character; as decoders do, it becomes U+FFFD."""
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return _LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


_WELL_FORMED = BeforeValidator(_without_surrogates)
_NULL_AS_EMPTY = BeforeValidator(lambda value: [] if value is None else value)


class Question(Frozen):
    """A prompt with the answers that count as right. `date` is the day of the question."""

    id: Annotated[Text, _WELL_FORMED]
    prompt: Annotated[Text, _WELL_FORMED]
    answers: Annotated[tuple[str, ...], _WELL_FORMED]
    scoring: Text
    date: IsoDate | None = None
    tool: str | None = None
    tools_off: Annotated[frozenset[str], _NULL_AS_EMPTY] = frozenset()

    @field_validator("scoring")
    @classmethod
    def _is_known(cls, scoring: str) -> str:
        check_scoring(scoring)
        return scoring

    @property
    def usable_answers(self) -> tuple[str, ...]:
        """The answers that a prediction can meet; without one the question cannot be right."""
        return usable_answers(self.scoring, self.answers)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named list of questions. `tools_off` would give the answers away (paper section 4.2.1)."""

    name: str
    questions: tuple[Question, ...]
    tools_off: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)  # what the files hold beside it, by reason
    first_line: bool = True  # whether only the first line of an answer is scored


def from_published(published: PublishedBenchmark, name: str, *, first_line: bool = False) -> Benchmark:
    """The questions of a published benchmark, under a name of this evaluation."""
    questions = [
        Question(
            id=example.id,
            prompt=published.prompt(example),
            answers=example.answers,
            scoring=published.rules.scoring,
            date=example.date,
        )
        for example in published.examples
    ]
    return Benchmark(name, tuple(questions), published.rules.tools_off, published.left_out, first_line)


def read_benchmark(path: Path, tools: Collection[str] | None = None) -> Benchmark:
    """The questions of a jsonl file; the benchmark has the file's name. Raises QuestionError.

    `tools` are those that a question may name; None: the installed ones.
    """
    tools = with_installed() if tools is None else tools
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: cannot be read as a question file in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}, line {number}", tools)
        if (first := line_of_id.setdefault(question.id, number)) != number:
            raise QuestionError(
                f"{path}, line {number}: id {printable(question.id, 60)!r} is also that of line {first}"
            )
        questions.append(question)
    if not questions:
        raise QuestionError(f"{path}: holds no question")
    tools_off = questions[0].tools_off
    for question in questions:
        if question.tools_off != tools_off:
            this, first_id = (printable(item.id, 60) for item in (question, questions[0]))
            raise QuestionError(f"{path}: tools_off of {this!r} is not that of {first_id!r}")
    return Benchmark(path.stem, tuple(questions), tools_off)


def _parse(line: str, where: str, tools: Collection[str]) -> Question:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{where}: Invalid JSON: {error}") from error
    if not isinstance(content, dict):
        raise QuestionError(f"{where}: must be an object with {', '.join(Question.model_fields)}")
    try:
        question = Question.model_validate(content)
    except ValidationError as error:
        fields = ", ".join(Question.model_fields)
        raise QuestionError(f"{where}: {brief(error)} (a question has {fields})") from error
    if not question.answers:
        raise QuestionError(f"{where}: answers: should have at least 1 item")
    for name in ([] if question.tool is None else [question.tool]) + sorted(question.tools_off):
        if name not in tools:
            place = "tool" if name == question.tool else "tools_off"
            raise QuestionError(f"{where}: {place} = {name!r}: no such tool; there are {', '.join(tools)}")
    return question
