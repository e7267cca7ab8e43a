"""Whether demonstrated calls are right: the tool answers them, and they stand in front of their result.

In: a demonstration, and what its tool answers. Out: problems. A result is recognised in a text if it stands
there, if one of its numbers does (rounded as the text has it), or one of its longer words that are not in
the call. The numbers and words of a text may have another reason, so a result that is not recognised is only
worth a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tools_service.base.printable import printable
from tools_service.contract.tool import ToolResult
from tools_service.syntax.demonstrations import DemonstratedCall, Demonstration, Problem

_MAX_SHOWN = 60  # characters of a call or result in a message
_MAX_RELATIVE_ERROR = 0.05  # of a rounded number
# Where a word or number begins and ends. Scripts without spaces have no such places.
_BEGIN, _END = "(?<![0-9a-z\u00e0-\u024f])(?<![0-9][.,])", "(?![0-9a-z\u00e0-\u024f])(?![.,][0-9])"
_WORD = re.compile(r"[^\W\d_]{4,}")
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d])")


def answer_problems(
    demonstration: Demonstration, tool: str, answers: Sequence[ToolResult], *, in_text: bool = True
) -> Iterator[Problem]:
    """What the `answers` to its calls, in their order, say against a demonstration.

    `in_text` false: the text need not have the results, because they are those of another date.
    """
    for call, answer in zip(demonstration.calls, answers, strict=True):
        shown = f"{tool}({printable(call.input, _MAX_SHOWN)})"
        if answer.result is None:
            yield Problem(demonstration.line, f"{shown} has no result: {answer.reason}")
            continue
        if not in_text:
            continue
        result = printable(answer.result, _MAX_SHOWN)
        if call.result is not None and " ".join(call.result.split()) != answer.result:
            stated = printable(call.result, _MAX_SHOWN)
            yield Problem(demonstration.line, f"{shown} gives {result!r}, not {stated!r}", is_note=True)
        before, after = demonstration.text[: call.position], demonstration.text[call.position :]
        if _is_recognised(answer.result, after, call):
            if _contains(answer.result, before):
                message = f"the result of {shown}, {result!r}, stands before the call, too"
                yield Problem(demonstration.line, message, is_note=True)
        elif _contains(answer.result, before) or _has_number_of(answer.result, before, call):
            message = f"{shown} stands after its result, {result!r}; write it in front of that"
            yield Problem(demonstration.line, message)
        else:
            message = f"the text after {shown} has nothing of its result, {result!r}; is that right?"
            yield Problem(demonstration.line, message, is_note=True)


def _is_recognised(result: str, text: str, call: DemonstratedCall) -> bool:
    if _contains(result, text) or _has_number_of(result, text, call):
        return True
    return not (_words(result) - _words(call.input)).isdisjoint(_words(text))


def _contains(result: str, text: str) -> bool:
    return re.search(f"{_BEGIN}{re.escape(result.casefold())}{_END}", text.casefold()) is not None


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _has_number_of(result: str, text: str, call: DemonstratedCall) -> bool:
    """Whether `text` has a number of `result`, as it is or rounded, that the call does not have."""
    known = {_number(written) for written in _NUMBER.findall(call.input)}
    numbers = {_number(written) for written in _NUMBER.findall(result)} - known
    return any(
        _rounds_to(number * factor, match[0])
        for match in _NUMBER.finditer(text)
        if _number(match[0]) not in known
        for factor in ((1, 100) if text[match.end() :].lstrip()[:1] == "%" else (1,))
        for number in numbers
    )


def _rounds_to(number: float, written: str) -> bool:
    decimals = len(written.partition(".")[2])
    error = abs(number - _number(written))
    # Half of the last digit, and a little for the binary fractions; 0.3 is not rounded to 0.
    return error <= 0.5000001 * 10.0**-decimals and error <= _MAX_RELATIVE_ERROR * abs(number)


def _number(written: str) -> float:
    return float(written.replace(",", ""))
