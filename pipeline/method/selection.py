"""Step 1, select: which texts each tool is tried on (paper Appendix A).

In: a tool, a `Text`, the `MethodConfig`. Out: a `Selection`: chosen or not, the rule that decided, and for
the calendar the date. Pure, and the same in every run. Tokens are counted without the language model, so that
the choice of texts does not depend on it (docs/decisions/0008). QA and WikiSearch take every text; signs of
arithmetic are read by numeracy.py. Texts with `skipped` set are the caller's to leave out.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.base.config import MethodConfig
from pipeline.base.records import Text
from pipeline.method.numeracy import announces_result, find_numbers, has_computed_number
from tools_service.tools.contract import ToolName
from tools_service.tools.languages import identify_language

WINDOW_TOKENS = 100
CHUNK_TOKENS = 10
MIN_CONFIDENCE = 0.8
_NUMBERS_NEEDED = 3
_WEB_YEARS = range(1990, 2100)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
# A whole date, year first, that nothing runs into: /2021/03/05/, /2021/3/5, /2021/mar/05, 2021-03-05,
# /20210305/. With slashes the day must end its part of the path: /2021/03/10-ideas is a page of March.
_URL_DATES = (
    re.compile(r"/(?P<year>[0-9]{4})/(?P<month>[0-9]{1,2})/(?P<day>[0-9]{1,2})(?=[/?#]|\.[a-z]|$)", re.I),
    re.compile(rf"/(?P<year>[0-9]{{4}})/{_MONTH_NAME}/(?P<day>[0-9]{{1,2}})(?=[/?#]|\.[a-z]|$)", re.I),
    re.compile(
        r"(?<![^\W_])(?P<year>[0-9]{4})(?P<sep>[-_.])(?P<month>[0-9]{2})(?P=sep)(?P<day>[0-9]{2})(?![^\W_])"
    ),
    re.compile(r"(?<![^\W_])(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})(?![^\W_])"),
)

# Scripts that put no space between words: each character is a token of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Selection:
    """`rule` chose the text, or is "no: REASON"; `date` is the day (ISO) the calendar answers with."""

    rule: str
    chosen: bool
    date: str | None = None


Identify = Callable[[str], tuple[str, float]]
"""The language of a string without line breaks (ISO 639 code) and the confidence, 0 to 1."""


def select(
    tool: ToolName, text: Text, method: MethodConfig, identify: Identify = identify_language
) -> Selection:
    """Whether and why a tool is tried on a text. `identify` is used for MT only."""
    if tool == "Calculator":
        return _select_calculator(text, method)
    if tool == "Calendar":
        return _select_calendar(text)
    if tool == "MT":
        return _select_mt(text, identify)
    return Selection("every text", True)


def _select_calculator(text: Text, method: MethodConfig) -> Selection:
    numbers = find_numbers(text.text)
    if has_computed_number(numbers, WINDOW_TOKENS):
        return Selection("a number computed from two others", True)
    if announces_result(text.text):
        return Selection("a result announced", True)
    if len(numbers) < _NUMBERS_NEEDED:
        return Selection("no: fewer than three numbers", False)
    if _uniform(text.text_id, method.seed) < method.calculator_random_share:
        return Selection("three numbers, of the random share", True)
    return Selection("no: numbers without a sign of arithmetic", False)


def _uniform(text_id: int, seed: int) -> float:
    """A number in [0, 1) that the text and the seed determine."""
    digest = hashlib.blake2b(f"calculator {seed} {text_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _select_calendar(text: Text) -> Selection:
    if not text.document.url:
        return Selection("no: no URL", False)
    date = date_in_url(text.document.url)
    if date is None:
        return Selection("no: no date in the URL", False)
    return Selection("a date in the URL", True, date)


def date_in_url(url: str) -> str | None:
    """The first whole, possible date in a URL, ISO YYYY-MM-DD. A year with a month alone is none."""
    found = []
    for pattern in _URL_DATES:
        for match in pattern.finditer(url):
            date = _possible(match.groupdict())
            if date is not None:
                found.append((match.start(), date))
                break
    return min(found)[1] if found else None


def _possible(parts: dict[str, str]) -> str | None:
    month = _MONTHS.index(parts["name"][:3].lower()) + 1 if "name" in parts else int(parts["month"])
    try:
        date = datetime.date(int(parts["year"]), month, int(parts["day"]))
    except ValueError:
        return None
    return date.isoformat() if date.year in _WEB_YEARS else None


def _select_mt(text: Text, identify: Identify) -> Selection:
    """A chunk of 10 tokens in another language, English somewhere before and after it."""
    languages = [identify(chunk) for chunk in _chunks(text.text) if _LETTER.search(chunk)]
    english = [at for at, (language, _) in enumerate(languages) if language == "en"]
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
    words = [match.span() for match in _WORD.finditer(text)]
    return [
        text[words[at][0] : words[min(at + CHUNK_TOKENS, len(words)) - 1][1]]
        for at in range(0, len(words), CHUNK_TOKENS)
    ]
