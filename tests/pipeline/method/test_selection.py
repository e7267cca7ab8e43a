"""Which texts each tool is tried on, and the reasons for the others."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.config import MethodConfig
from pipeline.base.records import Document, Text
from pipeline.method.selection import (
    CHUNK_TOKENS,
    UNSPACED,
    Selection,
    TextToSelect,
    date_in_url,
    foreign_passage,
    select,
)
from tools_service.base.errors import ToolformerError
from tools_service.contract.spec import Select, ToolMethod

pytestmark = pytest.mark.unit

METHOD = MethodConfig()

NUMBERS_ONLY = "In 1987 the club had 212 members and 9 horses."
ENGLISH = "The visitor stood in front of the small museum and read the sign to her friends. "
GERMAN = "Der alte Mann ging langsam über die Brücke und wartete dort auf seine Tochter, die nicht kam. "


def text(body: str = "", url: str | None = None, text_id: int = 0) -> Text:
    return Text(text_id, Document("web/a.jsonl#1", url), body)


@pytest.mark.parametrize("tool", ["QA", "WikiSearch"])
def test_question_answering_and_search_take_every_text(tool: str) -> None:
    assert select(tool, text("A."), METHOD) == Selection("every text", True)


# calculator


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("27 boys and 4 girls, that is 31 pupils.", "a number computed from two others"),
        ("The jars cost a total of 35 pounds.", "a result announced"),
        ("He was born on 3 May 1987.", "no: fewer than three numbers"),
        (NUMBERS_ONLY, "no: numbers without a sign of arithmetic"),
    ],
)
def test_the_rules_of_the_calculator(body: str, rule: str) -> None:
    selection = select("Calculator", text(body), METHOD)
    assert selection == Selection(rule, not rule.startswith("no: "))


def test_long_prose_without_arithmetic_is_not_calculator_material() -> None:
    prose = (
        "The village lies on a hill above the river. Its church was begun in 1412, the tower added in 1790 "
        "by a builder from the coast, and after the fire only the walls were left standing. "
    )
    assert not select("Calculator", text(prose * 12), METHOD).chosen


def random_choice(seed: int) -> list[int]:
    method = MethodConfig(seed=seed)
    rule = "three numbers, of the random share"
    return [
        text_id
        for text_id in range(1, 3_001)
        if select("Calculator", text("7 19 250", text_id=text_id), method) == Selection(rule, True)
    ]


def test_the_random_share_is_one_percent_and_depends_on_text_and_seed_alone() -> None:
    chosen = random_choice(seed=0)
    assert 15 < len(chosen) < 50
    assert chosen[:3] == [154, 223, 329]  # in this process as in any other
    assert len(set(random_choice(seed=1)) & set(chosen)) < 5


@pytest.mark.parametrize(("share", "chosen"), [(0.0, False), (1.0, True)])
def test_the_random_share_can_be_set(share: float, chosen: bool) -> None:
    method = MethodConfig(calculator_random_share=share)
    assert select("Calculator", text(NUMBERS_ONLY), method).chosen is chosen


def to_select(body: str) -> TextToSelect:
    return TextToSelect(body, Document("a#1"), 0.0, 0.5)


# calendar


@pytest.mark.parametrize(
    ("url", "date"),
    [
        ("http://a.example/2021/03/05/title", "2021-03-05"),
        ("http://a.example/2021/3/5", "2021-03-05"),
        ("http://a.example/2021/03/05.html", "2021-03-05"),
        ("http://a.example/2021/mar/05/title", "2021-03-05"),
        ("http://a.example/2021/March/5/", "2021-03-05"),
        ("http://a.example/news-2021-03-05-title", "2021-03-05"),
        ("http://a.example/2021_03_05_title", "2021-03-05"),
        ("http://a.example/?on=2021.03.05", "2021-03-05"),
        ("http://a.example/20210305/title", "2021-03-05"),
        ("http://a.example/2021/13/05/then/2020-02-29", "2020-02-29"),
        ("http://a.example/2021/03/05/the-plan-of-2019-12-31", "2021-03-05"),
    ],
)
def test_dates_in_urls(url: str, date: str) -> None:
    assert date_in_url(url) == date
    assert select("Calendar", text(url=url), METHOD) == Selection("a date in the URL", True, date)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/item/1234",
        "http://a.example/item/1234/5/6",
        "http://a.example/item/20219999",
        "http://a.example/2021/02/29/",
        "http://a.example/2021/13/05/",
        "http://a.example/2021/00/05/",
        "http://a.example/2021/03/",
        "http://a.example/2021/03/10-ideas/",
        "http://a.example/1821/03/05/",
        "http://a.example/2021-13-05",
        "http://a.example/2021-3-5",
        "http://a.example/x20210305",
        "http://a.example/120210305",
        "http://a.example/2021030512",
        "http://a.example/2015C1DD1629",
        "http://a.example/2021/mars/05/",
        "http://a.example/",
    ],
)
def test_what_is_no_date_in_a_url(url: str) -> None:
    assert select("Calendar", text(url=url), METHOD) == Selection("no: no date in the URL", False)


def test_without_a_url_there_is_no_date() -> None:
    on_the_day = Text(0, Document("web/a.jsonl#1", date="2021-03-05"), "It is 2021-03-05.")
    assert select("Calendar", on_the_day, METHOD) == Selection("no: no URL", False)


@given(st.dates(min_value=datetime.date(1990, 1, 1), max_value=datetime.date(2099, 12, 31)))
def test_every_day_is_found_in_each_way_of_writing_it(day: datetime.date) -> None:
    for form in ("/{:%Y/%m/%d}/", "/{:%Y/%b/%d}/", "/a-{:%Y-%m-%d}", "/{:%Y%m%d}/"):
        assert date_in_url("http://a.example" + form.format(day)) == str(day)


# machine translation


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (ENGLISH + GERMAN * 2 + ENGLISH, "a chunk in another language within English"),
        (
            ENGLISH + "\n" + "これは小さな町の古い博物館です。とても静かでした。" + "\n" + ENGLISH,
            "a chunk in another language within English",
        ),
        (GERMAN * 3 + ENGLISH * 2, "no: not within English"),
        (ENGLISH * 2 + GERMAN * 3, "no: not within English"),
        (GERMAN * 3, "no: not within English"),
        (ENGLISH * 4, "no: no chunk in another language"),
        (
            ENGLISH + "12.5 / 30 - 4,000 = # 17 *** 8 9 10 | 11 12 13 14 15 16 " * 3 + ENGLISH,
            "no: no chunk in another language",
        ),
        ("", "no: no chunk in another language"),
    ],
)
def test_the_rule_of_translation(body: str, rule: str) -> None:
    assert select("MT", text(body), METHOD) == Selection(rule, not rule.startswith("no: "))


def test_an_unsure_chunk_does_not_count() -> None:
    def unsure(chunk: str) -> tuple[str, float]:
        return ("de", 0.8) if "Brücke" in chunk else ("en", 0.3)

    body = ENGLISH + GERMAN + ENGLISH
    assert foreign_passage(to_select(body), unsure).rule == "no: no chunk in another language"


def test_chunks_of_only_digits_or_symbols_are_not_even_asked_about() -> None:
    def foreign_without_letters(chunk: str) -> tuple[str, float]:
        return ("en", 0.9) if any(map(str.isalpha, chunk)) else ("de", 0.9)

    body = ENGLISH + "12 / 30 - 4,000 = # 17 *** 8 9 10 | 11 12 13 " * 3 + ENGLISH
    assert (
        foreign_passage(to_select(body), foreign_without_letters).rule == "no: no chunk in another language"
    )


@given(
    st.lists(st.sampled_from(["word", "a.b", "字", "かな", "ไทย", " ", "\n", "\u00a0", "\x1c", "é"])).map(
        "".join
    )
)
def test_a_chunk_is_ten_words_or_characters_of_a_script_without_spaces(body: str) -> None:
    asked: list[str] = []

    def identify(chunk: str) -> tuple[str, float]:
        asked.append(chunk)
        return "en", 1.0

    foreign_passage(to_select(body), identify)
    tokens = [match.span() for match in re.finditer(rf"[{UNSPACED}]|[^\s{UNSPACED}]+", body)]
    tens = [tokens[first : first + CHUNK_TOKENS] for first in range(0, len(tokens), CHUNK_TOKENS)]
    assert asked == [body[ten[0][0] : ten[-1][1]] for ten in tens]


# tools of a user


def own_method(**select: object) -> MethodConfig:
    units = ToolMethod(select=Select.model_validate(select))
    return MethodConfig.model_validate({"tools": ["Units"], "units": units})


@pytest.mark.parametrize(
    ("rule", "body", "expected"),
    [
        ("all", "x", Selection("every text", True)),
        ("a_bool", "6 km", Selection("a_bool", True)),
        ("a_bool", "6 mi", Selection("no: a_bool", False)),
        ("a_reason", "6 mi", Selection("no: no distance", False)),
        ("a_reason", "6 km", Selection("a_reason", True)),
        ("the_text", " ", Selection("no: the_text", False)),
        ("the_text", "6\n" * 50, Selection("no: " + r"6\n" * 40 + "… (99 characters)", False)),
        ("a_selection", "6 km", Selection("it has 4 characters", True, "2023-01-30")),
    ],
)
def test_a_function_of_a_user_selects(rule: str, body: str, expected: Selection) -> None:
    reference = rule if rule == "all" else f"tests.pipeline.method.rules:{rule}"
    assert select("Units", text(body), own_method(rule=reference)) == expected


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("raises", "tools.Units.select = 'tests.pipeline.method.rules:raises' failed: ZeroDivisionError"),
        ("returns_a_number", "must return true, false or a reason, returned int"),
        ("no_such_rule", "has no attribute 'no_such_rule'"),
    ],
)
def test_a_function_that_breaks_is_named(rule: str, said: str) -> None:
    with pytest.raises(ToolformerError) as refused:
        select("Units", text("x"), own_method(rule=f"tests.pipeline.method.rules:{rule}"))
    assert said in str(refused.value)


def test_a_pattern_selects_and_a_share_of_the_rest() -> None:
    method = own_method(pattern=r"\d+ km")
    assert select("Units", text("It is 6 km long."), method) == Selection("the pattern", True)
    assert select("Units", text("It is long."), method) == Selection("no: no match of the pattern", False)
    shared = own_method(pattern=r"\d+ km", random_share=0.25)
    chosen = [n for n in range(400) if select("Units", text("It is long.", text_id=n), shared).chosen]
    assert 60 < len(chosen) < 140
    assert select("Units", text("", text_id=chosen[0]), shared).rule == "of the random share"
