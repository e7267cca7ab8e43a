"""Step 1, select: which texts each tool is tried on (paper Appendix A).

In: a tool, a `Text`, the `MethodConfig`. Out: a `Selection`: chosen or not, the rule that
decided and, for dated tools, the date. Deterministic. Tokens are counted without
the language model, so that the choice of texts does not depend on it (docs/decisions/0008).
Texts with `skipped` set are for the caller to leave out.

A tool's declaration names its rule: all texts, a date in the URL, a pattern, or a function
``module:name``. Such a function takes a `TextToSelect` (or, with a parameter called `text`, the
text alone) and returns true, false, the reason against the text, or a `Selection`.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Document, Funnel, Text
from pipeline.method.numeracy import (
    announces_result,
    find_numbers,
    has_computed_number,
)
from tools_service.base.errors import ToolformerError, brief
from tools_service.base.printable import printable
from tools_service.contract.declarations import import_object
from tools_service.contract.spec import Select
from tools_service.tools.languages import identify_language

WINDOW_TOKENS = 100
CHUNK_TOKENS = 10
MIN_CONFIDENCE = 0.8
_NUMBERS_NEEDED = 3
_MAX_REASON = 80  # rows and counts hold it
_WEB_YEARS = range(1990, 2100)

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTH_NAME = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
# A whole date, year first, with a boundary on both sides: /2021/03/05/, /2021/3/5,
# /2021/mar/05, 2021-03-05, /20210305/. Between slashes the day must end its part of the
# path: /2021/03/10-ideas is a page of March.
_URL_DATES = (
    re.compile(
        r"/(?P<year>[0-9]{4})/(?P<month>[0-9]{1,2})/(?P<day>[0-9]{1,2})(?=[/?#]|\.[a-z]|$)",
        re.I,
    ),
    re.compile(
        rf"/(?P<year>[0-9]{{4}})/{_MONTH_NAME}/(?P<day>[0-9]{{1,2}})(?=[/?#]|\.[a-z]|$)",
        re.I,
    ),
    re.compile(
        r"(?<![^\W_])(?P<year>[0-9]{4})(?P<sep>[-_.])(?P<month>[0-9]{2})(?P=sep)(?P<day>[0-9]{2})(?![^\W_])"
    ),
    re.compile(
        r"(?<![^\W_])(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})(?![^\W_])"
    ),
)

# Scripts without spaces between words: each character is a token of its own.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = rf"(?:[{UNSPACED}]|[^\s{UNSPACED}]++)"
_CHUNK = re.compile(rf"(?:{_WORD}\s*+){{1,{CHUNK_TOKENS}}}")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Selection:
    """Whether a text was chosen, and the rule that decided ("no: REASON" if not chosen).

    `date` is that of its calls (ISO)."""

    rule: str
    chosen: bool
    date: str | None = None


@dataclass(frozen=True, slots=True)
class TextToSelect:
    """A text, its document, and what a rule may depend on beside them."""

    text: str
    document: Document
    random_share: float
    """The share in the tool's declaration."""
    uniform: float
    """A number in [0, 1) that the tool, the text and the seed determine."""


Identify = Callable[[str], tuple[str, float]]
"""From a string without line breaks to its language (ISO 639 code) and a confidence, 0 to 1."""


class SelectionError(ToolformerError):
    """A function that selects texts failed, or returned what it may not return."""


def select(tool: str, text: Text, method: MethodConfig) -> Selection:
    """Whether a tool is tried on a text, and why. Raises SelectionError."""
    rule = method.of(tool).select
    if rule.rule == "all":
        return Selection("every text", True)
    if rule.rule == "dated":
        return _select_dated(text)
    uniform = _uniform(tool, text.text_id, method.seed)
    if rule.pattern is not None:
        return _select_pattern(text, rule, uniform)
    return _call_rule(
        tool,
        rule.rule,
        TextToSelect(text.text, text.document, rule.random_share, uniform),
    )


def unselected_annotation(
    text: Text, method: MethodConfig
) -> Annotation | None:
    """The row of a text that is skipped, or that no tool is tried on; None for others.

    Raises SelectionError.
    """
    if text.skipped is not None:
        return Annotation(text, "skipped", text.skipped)
    funnel = []
    for tool in method.tools:
        selection = select(tool, text, method)
        if selection.chosen:
            return None
        funnel.append(Funnel(tool, selection.rule))
    return Annotation(text, "no_calls", funnel=tuple(funnel))


def _select_pattern(text: Text, rule: Select, uniform: float) -> Selection:
    assert rule.pattern is not None
    if _compiled(rule.pattern).search(text.text):
        return Selection("the pattern", True)
    if uniform < rule.random_share:
        return Selection("of the random share", True)
    return Selection("no: no match of the pattern", False)


_compiled = cache(re.compile)


def _call_rule(tool: str, reference: str, text: TextToSelect) -> Selection:
    """Ask a function whether it selects the text."""
    function, text_alone = _rule(tool, reference)
    try:
        answer = function(text.text if text_alone else text)
    except Exception as error:  # a stranger's code
        raise SelectionError(
            f"tools.{tool}.select = {reference!r} failed: {type(error).__name__}: {brief(error)}"
        ) from error
    if isinstance(answer, Selection):
        return answer
    name = reference.partition(":")[2]
    if isinstance(answer, str):
        reason = printable(answer.strip(), _MAX_REASON) or name
        return Selection(f"no: {reason}", False)
    if isinstance(answer, bool):
        return Selection(name if answer else f"no: {name}", answer)
    raise SelectionError(
        f"tools.{tool}.select = {reference!r}: must return true, false or a reason, "
        f"returned {type(answer).__name__}"
    )


@cache
def _rule(tool: str, reference: str) -> tuple[Callable[[Any], object], bool]:
    """The function, and whether it takes the text alone."""
    function = import_object(reference, f"tools.{tool}.select")
    return function, "text" in inspect.signature(function).parameters


def _uniform(tool: str, text_id: int, seed: int) -> float:
    """A number in [0, 1) that the tool, the text and the seed determine."""
    digest = hashlib.blake2b(
        f"{tool.lower()} {seed} {text_id}".encode(), digest_size=8
    ).digest()
    return int.from_bytes(digest, "big") / 2**64


def arithmetic(to_select: TextToSelect) -> Selection:
    """The calculator's rule: numbers, and a sign of arithmetic with them."""
    numbers = find_numbers(to_select.text, at_least=_NUMBERS_NEEDED)
    if has_computed_number(numbers, WINDOW_TOKENS):
        return Selection("a number computed from two others", True)
    if announces_result(to_select.text):
        return Selection("a result announced", True)
    if len(numbers) < _NUMBERS_NEEDED:
        return Selection("no: fewer than three numbers", False)
    if to_select.uniform < to_select.random_share:
        return Selection("three numbers, of the random share", True)
    return Selection("no: numbers without a sign of arithmetic", False)


def _select_dated(text: Text) -> Selection:
    if not text.document.url:
        return Selection("no: no URL", False)
    date = date_in_url(text.document.url)
    if date is None:
        return Selection("no: no date in the URL", False)
    return Selection("a date in the URL", True, date)


def date_in_url(url: str) -> str | None:
    """The first valid date in a URL, as YYYY-MM-DD; None without year, month and day."""
    first_of_pattern = []
    for pattern in _URL_DATES:
        for match in pattern.finditer(url):
            date = _valid_date(match.groupdict())
            if date is not None:
                first_of_pattern.append((match.start(), date))
                break
    return min(first_of_pattern)[1] if first_of_pattern else None


def _valid_date(groups: dict[str, str]) -> str | None:
    """The ISO date of a match; None for a day that does not exist or a year not of the web."""
    name = groups.get("name")
    month = (
        _MONTHS.index(name[:3].lower()) // 4 + 1
        if name
        else int(groups["month"])
    )
    year, day = int(groups["year"]), int(groups["day"])
    try:
        date = datetime.date(year, month, day)
    except ValueError:
        return None
    return date.isoformat() if date.year in _WEB_YEARS else None


def foreign_passage(
    to_select: TextToSelect, identify: Identify = identify_language
) -> Selection:
    """The translator's rule: a chunk of 10 tokens in another language between English ones."""
    chunks = [
        chunk for chunk in _chunks(to_select.text) if _LETTER.search(chunk)
    ]
    languages = [identify(chunk) for chunk in chunks]
    english = [
        at for at, (language, _) in enumerate(languages) if language == "en"
    ]
    foreign = [
        at
        for at, (language, confidence) in enumerate(languages)
        if language != "en" and confidence > MIN_CONFIDENCE
    ]
    if not foreign:
        return Selection("no: no chunk in another language", False)
    if any(english and english[0] < at < english[-1] for at in foreign):
        return Selection("a chunk in another language within English", True)
    return Selection("no: not within English", False)


def _chunks(text: str) -> list[str]:
    """The text in slices of CHUNK_TOKENS words."""
    return [match[0].rstrip() for match in _CHUNK.finditer(text)]
