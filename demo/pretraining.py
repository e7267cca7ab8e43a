"""The pretraining documents of the annotator: the form of prompts, notes and pages, no facts.

Every document has a world of its own, which no other document uses. There are five kinds:

- plain pages, as in the demo corpus, but with invented entities, random results, and German next to the
  English of another sentence;
- reading: an encyclopedia article, with statements or questions and answers that it supports;
- annotations: an instruction, one to three demonstrations (``Input: …`` / ``Output: …`` with calls), and one
  more text with its calls;
- notes: a call in brackets before a page, with or without its result, which the page confirms or which is
  unrelated to it;
- lists that are repeated.

A document is a list of `(string, weight)`. The weight is that of the string's tokens in the loss;
it is low where nothing can be predicted.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from demo import arithmetic, dates, facts, lexicon, pages
from demo.pages import GoldCall, MarkedPage

Document = list[tuple[str, float]]

TOOLS = ("Calculator", "WikiSearch", "Calendar", "QA", "MT")
PROMPTS = Path(__file__).parent / "prompts"
REWORDED = {
    "Calculator": ("Insert calls to a calculator.", "Mark every result with its [Calculator(expression)]."),
    "WikiSearch": ("Insert searches.", "Mark every fact with a search for its subject, [WikiSearch(name)]."),
    "Calendar": ("Insert calls to a calendar.", "Mark every date of today with [Calendar()]."),
    "QA": ("Insert questions.", "Mark every fact with the question that it answers, [QA(question)]."),
    "MT": ("Insert translations.", "Mark the meaning of all German words with [MT(German words)]."),
}


def instruction(tool: str) -> str:
    """The first line of the tool's prompt file."""
    return (PROMPTS / f"{tool.lower()}.txt").read_text().splitlines()[0]


def passage(rng: Random, tool: str | None, size: int = 1) -> MarkedPage:
    """A page with `size` blocks for `tool` (None: any), sometimes another; invented facts."""
    blocks = [block(rng, tool or rng.choice(TOOLS)) for _ in range(size)]
    if rng.random() < 0.4:
        blocks.append(block(rng, rng.choice(TOOLS)))
    return pages.paragraphs(rng, blocks)


def block(rng: Random, tool: str) -> list[str]:
    """Sentences for which `tool` is useful."""
    if tool == "Calculator":
        return pages.arithmetic_sentences(rng, correct=False)
    if tool == "Calendar":
        return pages.date_sentences(rng, dates.day(rng))
    if tool == "MT":
        return pages.german_sentences(rng, correct=False)
    entity = facts.entity(rng)
    snippet = f"{entity.name} > {facts.article(entity, rng)}"
    return pages.fact_sentences(rng, entity, rng.choice((1, 1, 2)), tool, snippet)


def plain(rng: Random) -> Document:
    """A page with `size` blocks for `tool` (None: any), sometimes another; invented facts."""
    return [(" " + passage(rng, None, rng.choice((1, 2))).text, 0.5)]


def annotation(rng: Random) -> Document:
    """An annotation prompt for one tool, with its completion."""
    tool = rng.choices(TOOLS, (4.5, 2.5, 1.5, 3, 2))[0]
    first = instruction(tool) if rng.random() < 0.7 else rng.choice(REWORDED[tool])
    document: Document = [(first + "\n", 0.1)]
    shown = rng.choice((1, 1, 2, 2, 3, 3))
    for number in range(shown + 1):
        last = number == shown
        # In one text in eight the tool is of no use.
        subject = tool if rng.random() < 0.88 else rng.choice(TOOLS)
        marked = (
            passage(rng, subject)
            if last or rng.random() < 0.3
            else pages.paragraphs(rng, [block(rng, subject)])
        )
        document.append(("\nInput:" if number == 0 else "\n\nInput:", 0.3))
        document.append((" " + marked.text, 0.15))
        document.append(("\nOutput:", 0.3))
        document += annotated(rng, marked, tool)
    document.append(("\n\n", 0.3))
    return document


def annotated(rng: Random, marked: MarkedPage, tool: str) -> Document:
    """The text with most of its calls of one tool."""
    strings: Document = []
    done, text = 0, " " + marked.text
    for call in marked.calls:
        if call.tool == tool and rng.random() < 0.9:
            strings.append((text[done : call.position + 1], 0.6))
            strings.append((f" [{call.tool}({call.input})]", 2.0))
            done = call.position + 1
    return [*strings, (text[done:], 0.6)]


def note(rng: Random) -> Document:
    """A call before a page, with the page's result, without a result, or of another page."""
    tool = rng.choices(TOOLS, (4, 3, 2, 2, 2))[0]
    marked = passage(rng, tool, rng.choice((1, 1, 2)))
    calls = [call for call in marked.calls if call.tool == tool]
    kind = rng.random()
    if kind > 0.85:
        call = rng.choice([other for other in passage(rng, tool).calls if other.tool == tool])
    else:
        call = rng.choice(calls)
    written = f"{call.tool}({call.input})"
    bracket = f" [{written}]" if 0.7 < kind <= 0.85 else f" [{written} -> {call.result}]"
    return [(bracket, 0.2), *weighted(marked, call if kind <= 0.7 else None)]


def weighted(marked: MarkedPage, noted: GoldCall | None) -> Document:
    """The text, with a higher weight on the words that the noted call determines."""
    text = " " + marked.text
    if noted is None:
        return [(text, 0.5)]
    strings: Document = []
    done = 0
    for call in marked.calls:
        if call.tool == noted.tool and call.input == noted.input:
            longest = len(noted.result) if noted.tool == "MT" else 22
            end = min(len(text), call.position + 2 + longest)
            stop = text.find(".", call.position + 1, end)
            stop = stop if stop > 0 else end
            strings += [(text[done : call.position + 1], 0.5), (text[call.position + 1 : stop], 2.0)]
            done = stop
    return [*strings, (text[done:], 0.5)]


def reading(rng: Random) -> Document:
    """Statements or questions about an entity, with its article before them (sometimes next to
    another article), or in brackets in the middle of the first one."""
    subject = facts.entity(rng)
    article, other = (f"{each.name} > {facts.article(each, rng)}" for each in (subject, facts.entity(rng)))
    strings: Document = []
    reference = f" ({article})"
    if rng.random() < 0.5:
        articles = [article] if rng.random() < 0.5 else rng.sample([article, other], 2)
        strings, reference = [(" " + " ".join(articles), 0.3)], ""
    for name in rng.sample(list(subject.values), rng.choice((1, 2, 2))):
        value = subject.values[name]
        wording = f"Question: {rng.choice(facts.QUESTIONS[name])} Answer:{{c}} {{v}}."
        if rng.random() < 0.5:
            wording = rng.choice(facts.STATEMENTS[name])
        before, after = wording.format(s=subject.name, c="\0", v=value).split(f"\0 {value}")
        strings += [(f" {before}{reference}", 0.3), (f" {value}", 2.0), (after, 0.3)]
        reference = ""
    return strings


def lists(rng: Random) -> Document:
    """A list of names and numbers, repeated once."""
    kinds = (
        lambda: facts.person(rng).name,
        lambda: lexicon.town(rng),
        lambda: str(rng.randint(2, 999)),
        lambda: arithmetic.story(rng).expression,
        lambda: facts.entity(rng).name,
    )
    items = [rng.choice(kinds)() for _ in range(rng.randint(4, 12))]
    return [(" " + ", ".join(items) + ".", 0.1), ("\nAgain: " + ", ".join(items) + ".", 1.0)]


def document(rng: Random) -> Document:
    """A document of a random kind."""
    return rng.choices((annotation, note, plain, reading, lists), (0.36, 0.34, 0.12, 0.12, 0.06))[0](rng)
