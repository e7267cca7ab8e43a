"""The page of a report in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.method.merging import choose, kept_calls
from pipeline.report.html.data import Report
from pipeline.report.html.document import write_report
from tests.browser import Page, chromium, contrast
from tests.pipeline.report.html.page_samples import (
    BROKEN,
    HOSTILE,
    TAU_F,
    TOOLS,
    evaluation,
    sample_report,
    sample_rows,
    training,
)

pytestmark = pytest.mark.ray  # starts a browser

ROWS = sample_rows(300)
SECTIONS = [
    *("funnel", "gain", "probability", "calls", "placement", "dropped", "value", "cost"),
    *("augmented", "training", "evaluation"),
]
# Not below the annotation's own tau_f, where gains are bounds. The last is the gain of a call.
GRID = (0.5, 0.75, 1.0, 1.1, 1.37, 1.5, 2.0, 2.6, 3.5, 9.0)
GRID += (sorted(call["gain"] for row in ROWS for call in row["calls"])[-40],)
J, K, SLASH, ENTER, ESCAPE, RIGHT = (
    ("j", 74),
    ("k", 75),
    ("/", 191),
    ("Enter", 13),
    ("Escape", 27),
    ("ArrowRight", 39),
)

Show = Callable[[Report], Page]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        for domain in ("Runtime", "Log", "Page"):
            page.send(f"{domain}.enable")
        yield page


@pytest.fixture
def show(browser: Page, tmp_path: Path) -> Iterator[Show]:
    """Opens a report in a window of a desk; fails the test if the page complains."""

    def open_report(report: Report) -> Page:
        path = tmp_path / "report.html"
        write_report(report, path)
        browser.resize(1280)
        browser.open(path.as_uri())
        browser.wait_for("document.documentElement.dataset.ready !== undefined")
        return browser

    browser.complaints.clear()
    yield open_report
    browser.send("Emulation.setEmulatedMedia", media="", features=[])
    browser.evaluate("1")  # events before the answer have come
    assert browser.complaints == []


def text(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({selector!r}).textContent"))


def number(page: Page, selector: str) -> int:
    return int(text(page, selector).replace(",", ""))


def shown_calls(page: Page) -> list[str]:
    return list(page.evaluate("[...document.querySelectorAll('.calls mark')].map(mark => mark.textContent)"))


def set_value(page: Page, selector: str, value: object, event: str = "change") -> None:
    page.evaluate(
        f"(() => {{ const field = document.querySelector({selector!r}); field.value = {str(value)!r};"
        f" field.dispatchEvent(new Event({event!r}, {{bubbles: true}})) }})()"
    )


def test_every_section_is_shown_and_nothing_is_loaded(show: Show) -> None:
    page = show(sample_report(ROWS))
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(part => part.id)") == SECTIONS
    links = page.evaluate("[...document.querySelectorAll('#contents a')].map(link => link.hash.slice(1))")
    assert links == SECTIONS
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert "1 of the texts was skipped" in text(page, "#head .notes")
    assert "300" in text(page, "#head .numbers")
    drawn = (
        "charts.every(({plot}) => plot.status === 1 && Object.values(plot.scales).every(s => s.max > s.min))"
    )
    page.wait_for(drawn)


def test_what_a_folder_does_not_have_is_left_out(show: Show) -> None:
    report = sample_report(ROWS[:3])
    page = show(report.model_copy(update={"annotation": None, "augmented": None, "evaluation": None}))
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(part => part.id)") == [
        "training"
    ]
    page = show(report.model_copy(update={"annotation": None, "augmented": None, "trainings": ()}))
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(part => part.id)") == [
        "evaluation"
    ]
    page = show(sample_report([]).model_copy(update={"problems": ("The manifest could not be read.",)}))
    sections = page.evaluate("[...document.querySelectorAll('main > section')].map(part => part.id)")
    assert "gain" not in sections
    assert "calls" not in sections
    assert "funnel" in sections
    assert text(page, "#head .problem") == "The manifest could not be read."


def expected(tau_f: Mapping[str, float], **rule: Any) -> tuple[list[int], list[str]]:
    """Of merge: texts and calls of C*; by tool kept calls, texts with one, calls and texts in C*."""
    one_per_position = rule["one_call_per_position"]
    mixture = choose(
        ROWS, tau_f, rule["max_examples"], rule.get("seed", 0), one_per_position=one_per_position
    )
    merged = [mixture.calls(row) for row in ROWS]
    kept = [kept_calls(row["calls"], row["text"], tau_f) for row in ROWS]
    by_tool = [
        " ".join(
            str(part)
            for part in (
                sum(call.tool == tool for calls in kept for call in calls),
                mixture.tools[tool].candidates,
                sum(call.tool == tool for calls in merged for call in calls),
                sum(any(call.tool == tool for call in calls) for calls in merged),
            )
        )
        for tool in TOOLS
    ]
    return [sum(map(bool, merged)), sum(map(len, merged))], by_tool


@pytest.mark.parametrize(
    "rule",
    [
        {"max_examples": 25_000, "one_call_per_position": True},
        {"max_examples": 40, "one_call_per_position": True},
        {"max_examples": 40, "one_call_per_position": False, "seed": 2**64 - 1},
    ],
    ids=["usual", "capped", "several calls at a position"],
)
def test_the_page_counts_what_merge_keeps(show: Show, rule: dict[str, Any]) -> None:
    page = show(sample_report(ROWS, **rule))
    counts = set()
    for value in GRID:
        set_value(page, "input[aria-label^='Threshold of all']", value)
        tau_f = {tool: max(value, TAU_F[tool]) for tool in TOOLS}
        total, by_tool = expected(tau_f, **rule)
        assert [number(page, "#total-texts"), number(page, "#total-calls")] == total, value
        assert (
            page.evaluate("[...document.querySelectorAll('.kept')].map(line => line.dataset.counts)")
            == by_tool
        )
        counts.add(tuple(total))
    assert len(counts) > 5, "the thresholds change something"
    mixed = dict(zip(TOOLS, (1.0, 2.5, 0.5, 1.25, 3.0), strict=True))
    for tool, value in mixed.items():
        set_value(page, f"input[data-tool={tool}]", value)
    assert [number(page, "#total-texts"), number(page, "#total-calls")] == expected(mixed, **rule)[0]
    words = shlex.split(text(page, "#merge-command"))
    tau_f_words = words[words.index("--tau-f") + 1 : words.index("--max-examples")]
    assert dict(zip(tau_f_words[::2], map(float, tau_f_words[1::2]), strict=True)) == mixed
    assert words[:3] == ["python", "-m", "pipeline"]
    assert words[3:6] == ["merge", "--annotations", "runs/sample/annotations"]
    assert words[words.index("--max-examples") + 1] == str(rule["max_examples"])
    assert ("--no-one-call-per-position" in words) == (not rule["one_call_per_position"])
    assert [word for word in words if word.startswith("--seed")] == [
        f"--seed={rule['seed']}" for _ in range("seed" in rule)
    ]


def test_a_threshold_follows_keys_and_the_mouse_and_not_below_the_annotations(show: Show) -> None:
    page = show(sample_report(ROWS))
    slider = "input[type=range][aria-label='Threshold of Calculator']"
    page.evaluate(f"document.querySelector({slider!r}).focus()")
    for _ in range(3):
        page.press(*RIGHT)
    assert page.evaluate("document.querySelector('input[data-tool=Calculator]').value") == "0.53"
    set_value(page, "input[data-tool=Calculator]", "0.1")
    assert page.evaluate("document.querySelector('input[data-tool=Calculator]').value") == "0.5", "tau_f"
    before = text(page, ".kept")
    page.evaluate(
        "document.querySelector('.gain .plot').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    box = page.evaluate(
        "(() => { const b = document.querySelector('.gain .u-over').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height] })()"
    )
    for kind, share in (("mousePressed", 0.7), ("mouseMoved", 0.8), ("mouseReleased", 0.8)):
        place = {"x": box[0] + share * box[2], "y": box[1] + box[3] / 2}
        page.send("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)
    assert text(page, ".kept") != before
    assert page.evaluate("thresholds.values[0] > thresholds.lowest[0]")
    page.evaluate("[...document.querySelectorAll('button')].find(b => b.textContent === 'Reset').click()")
    assert text(page, ".kept") == before


def test_calls_are_searched_filtered_and_sorted(show: Show) -> None:
    report = sample_report(ROWS)
    assert report.annotation is not None
    contexts = report.annotation.contexts
    page = show(report)
    best = sorted(contexts, key=lambda call: -call.gain)
    assert shown_calls(page) == [call.call.strip() for call in best[:10]]
    wanted = best[7]
    page.press(*SLASH)
    assert page.evaluate("document.activeElement.id") == "search"
    page.type(wanted.call.strip().upper())
    assert wanted.call.strip() in shown_calls(page)
    assert len(shown_calls(page)) < 10
    set_value(page, "#search", "", "input")
    selects = ".controls label:has(select)"
    assert page.evaluate(
        f"[...document.querySelectorAll('#calls {selects}')].map(l => l.firstChild.textContent)"
    ) == [
        "Tool",
        "Chosen as",
        "At the thresholds",
        "Order",
    ]
    set_value(page, "#calls label:nth-of-type(2) select", "Calendar")
    assert {call.split("(")[0] for call in shown_calls(page)} == {"[Calendar"}
    set_value(page, "#calls label:nth-of-type(3) select", "worst")
    set_value(page, "#calls label:nth-of-type(4) select", "no")
    set_value(page, "#calls label:nth-of-type(5) input", "-0.5", "input")
    set_value(page, "#calls label:nth-of-type(7) select", "worst")
    left = [
        call
        for call in sorted(contexts, key=lambda call: call.gain)
        if call.tool == "Calendar" and "worst" in call.chosen and not call.kept and call.gain >= -0.5
    ]
    assert shown_calls(page) == [call.call.strip() for call in left[:10]] != []


def test_calls_are_read_with_the_keyboard(show: Show) -> None:
    page = show(sample_report(ROWS))
    for key in (J, J, K, J):
        page.press(*key)
    place = "[...document.querySelectorAll('.calls > li')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 1
    page.press(*ENTER)
    opened = "document.querySelectorAll('.calls > li')[1].querySelector('.body').textContent"
    for name in ("L⁺", "L_empty", "L_call", "p(<API>)", "gain"):
        assert name in page.evaluate(opened)
    with_call = "document.querySelectorAll('.calls > li')[1].querySelector('.text').textContent"
    before = page.evaluate(with_call)
    page.evaluate("document.querySelectorAll('.calls > li')[1].querySelector('[aria-pressed]').click()")
    assert "[" in before
    assert "[" not in page.evaluate(with_call)
    page.evaluate("document.querySelectorAll('.calls > li')[1].focus()")
    page.press(*ENTER)
    assert page.evaluate(opened) == ""
    for _ in range(9):
        page.press(*J)
    assert text(page, "#calls .pager [role=status]") == "11–20 of 300", "the next page follows"
    page.press(*K)
    assert text(page, "#calls .pager [role=status]") == "1–10 of 300"
    assert page.evaluate(place) == 9
    page.press(*SLASH)
    page.press(*ESCAPE)
    assert page.evaluate("document.activeElement === document.body")


def test_what_was_lost_is_explained_on_demand(show: Show) -> None:
    page = show(sample_report(ROWS))
    page.evaluate("document.querySelector('.funnel button').click()")
    assert "did not close the call" in text(page, "#lost")
    assert "max-call-tokens" in text(page, "#lost")
    page.evaluate("document.querySelector('.funnel button').click()")
    assert page.evaluate("document.getElementById('lost').hidden")
    heads = (
        "[...document.querySelectorAll('#dropped tbody th')]"
        ".map(head => parseInt(head.textContent.replace(',', '')))"
    )
    assert page.evaluate(heads) == [1204, 311, 1]
    page.evaluate("document.querySelector('#dropped th button').click()")
    assert page.evaluate(heads) == [1, 311, 1204]
    set_value(page, "#dropped select", "Calculator")
    assert page.evaluate(heads) == [311, 1204]


def test_questions_are_filtered_by_right_and_wrong(show: Show) -> None:
    page = show(sample_report([]))
    set_value(page, "#evaluation label:nth-of-type(4) select", "false")
    verdicts = page.evaluate("[...document.querySelectorAll('.questions .whether')].map(e => e.textContent)")
    assert verdicts == ["✗ wrong"] * 10
    assert page.evaluate("document.querySelector('.questions mark').textContent").startswith("[Calculator(")


def test_every_curve_of_a_training_is_shown(show: Show) -> None:
    page = show(sample_report([]))
    titles = page.evaluate("[...document.querySelectorAll('#training h3')].map(title => title.textContent)")
    first = ["loss", "held-out loss", "perplexity", "another number"]
    names = [run.name for run in sample_report([]).trainings]
    assert titles[: len(first) + len(names)] == [*first, *(f"calls, {name}" for name in names)]
    assert {"learning rate", "gradient norm", "tokens per second", "FLOP utilisation"} <= set(titles)
    card = "[...document.querySelectorAll('#training .card')].find(card => /^calls/.test(card.innerText))"
    tools = page.evaluate(f"[...{card}.querySelectorAll('.legend li')].map(line => line.textContent)")
    assert tools == ["QA", "MT"]


def test_hostile_texts_are_shown_and_never_run(show: Show) -> None:
    rows = sample_rows(2)
    for row in rows:
        row["text"] = HOSTILE
        for call in row["calls"]:
            call.update(
                position=len(HOSTILE) // 2, input=HOSTILE, result="</script><script>hacked = 1</script>"
            )
    report = sample_report(rows)
    run = training(BROKEN, 2.0).model_copy(update={"losses": (HOSTILE,)})
    page = show(report.model_copy(update={"title": BROKEN, "problems": (BROKEN,), "trainings": (run,)}))
    assert page.evaluate("window.hacked === undefined")
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    page.evaluate("document.querySelector('.calls button').click()")
    assert "<img src=x onerror='window.hacked = 1'>" in text(page, ".calls article")
    half = HOSTILE[: len(HOSTILE) // 2]
    assert text(page, ".calls .text").startswith(half[:20])
    assert "<!--" in text(page, ".calls article")
    isolated = "getComputedStyle(document.querySelector('.calls .text')).unicodeBidi"
    assert page.evaluate(isolated) == "isolate", "a text turns no other text round"


def test_charts_open_calls(show: Show) -> None:
    page = show(sample_report(ROWS))
    page.evaluate(
        "document.querySelector('#probability .plot').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    place = page.evaluate(
        "(() => { const { plot } = document.querySelector('#probability .chart');"
        " const call = report.annotation.contexts[0]; const box = plot.over.getBoundingClientRect();"
        " const [x, y] = [plot.valToPos(logit(call.p_api), 'x'), plot.valToPos(call.gain, 'y')];"
        " return [box.left + x, box.top + y] })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, x=place[0], y=place[1])
    assert page.evaluate("document.querySelector('#probability .panel').hidden") is False
    assert "L_empty" in text(page, "#probability .panel")


# Pairs of colours of texts that a reader sees, with an example; gradients and images are not used.
COLOURS = """(() => {
  const pairs = {};
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.disabled || element.closest('script')) continue;
    const clear = 'rgba(0, 0, 0, 0)';
    let under = element;
    while (getComputedStyle(under).backgroundColor === clear) under = under.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(under).backgroundColor];
    pairs[pair] = [...pair, element.outerHTML.slice(0, 80)];
  }
  return Object.values(pairs);
})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable_in_both_themes(show: Show, browser: Page, theme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": theme}]
    browser.send("Emulation.setEmulatedMedia", features=media)
    page = show(sample_report(ROWS))
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    page.evaluate("document.querySelector('.calls button').click()")
    page.evaluate("document.querySelector('.funnel button').click()")
    pairs = page.evaluate(COLOURS)
    assert len(pairs) > 8
    for colour, background, example in pairs:
        assert contrast(colour, background) >= 4.5, example  # WCAG 2.2, AA
    # Colours of charts: 3 to 1 (WCAG 2.2, 1.4.11).
    series = page.evaluate(
        "Array.from({length: PALETTE}, (_, n) => colour(`--series-${n}`)).concat(colour('--card'))"
    )
    for colour in series[:-1]:
        assert contrast(colour, series[-1]) >= 3


def test_the_theme_is_switched_and_charts_follow(show: Show, browser: Page) -> None:
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page = show(sample_report(ROWS))
    background = "getComputedStyle(document.body).backgroundColor"
    light, drawn = page.evaluate(background), page.evaluate("document.querySelector('canvas').toDataURL()")
    page.evaluate("document.querySelector('.theme').click()")
    assert page.evaluate(background) != light
    page.wait_for(f"document.querySelector('canvas').toDataURL() !== {drawn!r}")
    assert text(page, ".theme") == "Light theme"


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_the_page_never_scrolls_sideways(show: Show, browser: Page, width: int) -> None:
    page = show(sample_report(ROWS))
    page.resize(width)
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    page.evaluate("document.querySelector('.calls button').click()")
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frame)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for("[...document.querySelectorAll('.plot')].every(p => p.scrollWidth <= p.clientWidth + 1)")


def test_paper_has_all_sections_and_no_controls(show: Show, browser: Page) -> None:
    page = show(sample_report(ROWS))
    page.evaluate("document.querySelector('.theme').click()")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.send("Emulation.setEmulatedMedia", media="print", features=[])
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("#contents", ".controls", ".pager", "input[type=range]"):
        assert not page.evaluate(f"document.querySelector({selector!r}).checkVisibility()"), selector
    visible = "[...document.querySelectorAll('main > section, canvas')].every(part => part.checkVisibility())"
    assert page.evaluate(visible)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


def test_every_control_and_chart_has_a_name(show: Show) -> None:
    page = show(sample_report(ROWS))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button, [role=img], [role=region]')].filter(e =>"
        " !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length"), "ids are unique"


def test_a_sample_of_the_texts_says_so(show: Show) -> None:
    report = sample_report(ROWS)
    assert report.annotation is not None
    calls = report.annotation.calls.model_copy(update={"sampled": 0.25})
    sampled = report.annotation.model_copy(update={"calls": calls})
    page = show(report.model_copy(update={"annotation": sampled}))
    whole = expected(TAU_F, max_examples=25_000, one_call_per_position=True)[0]
    assert text(page, "#total-texts") == f"about {4 * whole[0]:,}"
    assert "estimates from 25 % of the texts" in text(page, "#gain .notes")


def test_an_evaluation_alone_names_its_models(show: Show) -> None:
    page = show(Report(title="e", folder="e", created="2026", version="1", evaluation=evaluation()))
    assert "mean of 2 benchmarks, toolformer" in text(page, "#head .numbers")
    assert "paper 48.0" in text(page, "#evaluation table")
    assert page.evaluate("document.querySelectorAll('#evaluation .dot').length") == 8
