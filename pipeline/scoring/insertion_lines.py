"""Lines of JSON with insertions, in parts of bounded size; and the same lines with their scores.

In: a file of JSON lines, each an object with ``text`` and ``position`` (or ``before`` and ``after``),
``insertion``, and maybe ``without_result``. Out: parts of consecutive lines, insertions, and lines of
output: the object as it was, with one more field. A line that is no insertion has a reason there, and
costs no other its score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.corpus.documents import lines_with_content
from pipeline.corpus.files import CorpusFile
from pipeline.method.insertions import Insertion, ScoredInsertion
from tools_service.base.json_lines import parse_json
from tools_service.base.printable import printable

_PART_LINES = 1_024
_PART_CHARACTERS = 8 * 2**20
_LOGPROBS = ("logprobs_plus", "logprobs_empty", "logprobs_call")


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line of an input file, numbered from 1, or the `problem` that keeps it from being read."""

    number: int
    text: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive lines of one file; they are scored together and become one file of output."""

    name: str
    lines: Sequence[InputLine]


def read_parts(file: CorpusFile, number: int) -> Iterator[Part]:
    """The parts of input file `number`. Their borders depend on the content of the file alone."""
    lines: list[InputLine] = []
    characters = 0
    for line in lines_with_content(file):
        if len(lines) == _PART_LINES or (lines and characters + len(line.text) > _PART_CHARACTERS):
            yield _part(number, lines)
            lines, characters = [], 0
        lines.append(InputLine(line.number, "" if line.problem else line.text, line.problem))
        characters += len(line.text)
    if lines:
        yield _part(number, lines)


def _part(number: int, lines: Sequence[InputLine]) -> Part:
    return Part(f"{number:05}-{lines[0].number:010}.jsonl", lines)


def parse_insertion(line: InputLine, field: str) -> tuple[dict[str, Any], Insertion | str]:
    """The object of a line, and its insertion or why it has none; `field` must be free for the result."""
    if line.problem is not None:
        return {"line": line.number}, line.problem
    try:
        fields = parse_json(line.text)
    except ValueError as error:
        return {"line": line.number}, str(error)
    if not isinstance(fields, dict):
        return {"line": line.number}, "not an object"
    if field in fields:
        return fields, f"the line has a field {field!r} already; choose another with --field"
    return fields, _insertion(fields)


def _insertion(fields: Mapping[str, Any]) -> Insertion | str:
    if "text" in fields:
        text, position = fields["text"], fields.get("position")
        if not isinstance(position, int) or isinstance(position, bool):
            return "position must be a whole number: characters of text before the insertion"
    else:
        before, after = fields.get("before"), fields.get("after")
        if not (isinstance(before, str) and isinstance(after, str)):
            return "there must be text and position, or before and after"
        text, position = before + after, len(before)
    insertion, without_result = fields.get("insertion"), fields.get("without_result")
    for name, value in (("text", text), ("insertion", insertion), ("without_result", without_result)):
        if value is None and name == "without_result":
            continue
        if not isinstance(value, str):
            return f"{name} must be a string"
        if not _is_unicode(value):
            return f"{name} holds half of a surrogate pair, which is no text"
    assert isinstance(insertion, str)
    return Insertion(text, position, insertion, without_result)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def output_line(fields: Mapping[str, Any], field: str, score: ScoredInsertion | str, per_token: bool) -> str:
    """The line of output: `fields`, and in `field` the losses, or the reason why there are none."""
    if isinstance(score, str):
        score = ScoredInsertion(reason=printable(score))
    result = {name: value for name, value in asdict(score).items() if value is not None}
    if not per_token or score.reason is not None:
        result = {name: value for name, value in result.items() if name not in _LOGPROBS}
    row = {**fields, field: result}
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode().decode()
    except (UnicodeEncodeError, ValueError):  # half of a surrogate pair or NaN in a field of the user's
        return json.dumps(row)
