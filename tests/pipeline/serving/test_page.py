"""The page at / in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    TextEvent,
)
from pipeline.inference.params import DecodingParams
from pipeline.serving.app import PAGE
from pipeline.serving.errors import replica_lost
from tests.browser import Page, chromium, contrast
from tests.pipeline.serving.endpoint import running

pytestmark = pytest.mark.ray  # starts a browser

END = EndEvent(Generation(" so it is.", (), (), "eos", 3, prompt_tokens=2))
MARKUP = "<b id=evil>27 + 4</b>"
EVENTS: list[Event] = [
    FailureEvent(FailedCall("Sum(1", "no_tool", 0)),
    TextEvent(" so"),
    CallEvent("Calculator", MARKUP),
    ResultEvent(CompletedCall("Calculator", MARKUP, "31", 3)),
    TextEvent(" it is."),
    END,
]
ENTER, ESCAPE, CTRL = ("Enter", 13), ("Escape", 27), 2


class PacedDecode:
    """Gives the next event when it is allowed to; keeps the parameters of the requests."""

    def __init__(self) -> None:
        self.allowed = 0
        self.requests: list[tuple[Any, DecodingParams]] = []
        self.error: Exception | None = None
        self.closed = 0

    async def __call__(
        self, prompt: Any, params: DecodingParams, date: str | None, *, stream: bool
    ) -> AsyncGenerator[list[Event], None]:
        self.requests.append((prompt, params))
        try:
            for number, event in enumerate(EVENTS):
                while self.allowed <= number:
                    await asyncio.sleep(0.005)
                yield [event]
                if self.error is not None:
                    raise self.error
        finally:
            self.closed += 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def text(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector('{selector}').textContent"))


def open_page(page: Page, url: str, prompt: str = "The answer is ") -> None:
    page.open(f"{url}/")
    page.wait_for("document.querySelectorAll('#tools input').length > 0")
    page.evaluate("document.getElementById('prompt').focus()")
    page.type(prompt)


def test_the_answer_appears_with_its_calls_while_it_is_written(browser: Page) -> None:
    decode = PacedDecode()
    with running(decode, DecodingParams(k=3)) as url:
        open_page(browser, url)
        assert browser.evaluate("document.getElementById('k').value") == "3", "the server's"
        decode.allowed = 3
        browser.press(*ENTER, CTRL)
        browser.wait_for("document.querySelector('#answer .call') !== null")
        assert text(browser, "#answer") == f"The answer is so [Calculator({MARKUP}) → …]"
        assert browser.evaluate("document.getElementById('answer').getAttribute('aria-busy')") == "true"
        decode.allowed = len(EVENTS)
        browser.wait_for("document.getElementById('state').textContent === 'done'")
    assert text(browser, "#answer") == f"The answer is so [Calculator({MARKUP}) → 31] it is."
    assert text(browser, "#answer .result") == "31"
    assert text(browser, "#failed li") == "Sum(1 no_tool"
    assert browser.evaluate("document.getElementById('evil') === null"), "what a model writes is text"
    background = "getComputedStyle(document.querySelector('.call')).backgroundColor"
    assert browser.evaluate(background) != "rgba(0, 0, 0, 0)", "calls are highlighted"


def test_k_and_the_tools_are_what_the_page_says(browser: Page) -> None:
    decode = PacedDecode()
    decode.allowed = len(EVENTS)
    with running(decode, DecodingParams(k=3)) as url:
        open_page(browser, url)
        browser.evaluate("document.getElementById('k').value = 7")
        browser.evaluate("document.querySelector('#tools input[value=QA]').click()")
        browser.evaluate("document.getElementById('send').click()")
        browser.wait_for("document.getElementById('state').textContent === 'done'")
    [(prompt, params)] = decode.requests
    assert (prompt, params.k, params.tools_off) == ("The answer is ", 7, frozenset({"QA"}))


def test_escape_stops_the_decoding(browser: Page) -> None:
    decode = PacedDecode()
    with running(decode) as url:
        open_page(browser, url)
        decode.allowed = 2
        browser.press(*ENTER, CTRL)
        browser.wait_for("document.getElementById('answer').textContent.includes(' so')")
        browser.press(*ESCAPE)
        browser.wait_for("document.getElementById('state').textContent === 'stopped'")
    assert decode.closed == 1


def test_an_error_is_shown_and_announced(browser: Page) -> None:
    decode = PacedDecode()
    decode.allowed, decode.error = 1, replica_lost()
    with running(decode) as url:
        open_page(browser, url)
        browser.press(*ENTER, CTRL)
        browser.wait_for("document.getElementById('error').textContent.includes('replica')")
    assert browser.evaluate("document.getElementById('error').getAttribute('role')") == "alert"


def test_a_server_that_has_ended_is_named(browser: Page) -> None:
    with running(PacedDecode()) as url:
        open_page(browser, url)
    browser.press(*ENTER, CTRL)
    browser.wait_for("document.getElementById('error').textContent.includes('still running')")


def test_the_page_asks_for_the_token(browser: Page) -> None:
    decode = PacedDecode()
    decode.allowed = len(EVENTS)
    with running(decode, token="secret") as url:
        browser.open(f"{url}/")
        browser.wait_for("!document.getElementById('token-field').hidden")
        browser.evaluate("document.getElementById('token').focus()")
        browser.type("secret")
        browser.press("Tab", 9)
        browser.evaluate("document.getElementById('token').dispatchEvent(new Event('change'))")
        browser.wait_for("document.querySelectorAll('#tools input').length > 0")
        browser.evaluate("document.getElementById('prompt').value = 'a'")
        browser.evaluate("document.getElementById('send').click()")
        browser.wait_for("document.getElementById('state').textContent === 'done'")


def test_every_control_has_a_name_and_nothing_is_loaded_from_elsewhere(browser: Page) -> None:
    with running(PacedDecode()) as url:
        open_page(browser, url)
        unnamed = "[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).length"
        assert browser.evaluate(unnamed) == 0
        urls = browser.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(loaded.startswith(url) for loaded in urls)
        for width in (360, 1200):
            browser.resize(width)
            overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not browser.evaluate(overflow), f"the page scrolls sideways at {width}"
        browser.send("Emulation.clearDeviceMetricsOverride")
    for file in PAGE.iterdir():
        assert "http" not in file.read_text(), f"{file.name} names another site"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(browser: Page, scheme: str) -> None:
    decode = PacedDecode()
    decode.allowed = len(EVENTS)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    with running(decode) as url:
        browser.send("Emulation.setEmulatedMedia", features=media)
        open_page(browser, url)
        browser.press(*ENTER, CTRL)
        browser.wait_for("document.getElementById('state').textContent === 'done'")
        for inner, outer in ((".prompt", "#answer"), (".result", ".call"), ("#send", "#send")):
            colours = [
                browser.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")
                for selector, name in ((inner, "color"), (outer, "backgroundColor"))
            ]
            assert contrast(*colours) >= 4.5, f"{inner} on {outer}"  # WCAG 2.2, AA
        browser.send("Emulation.setEmulatedMedia", features=[])
