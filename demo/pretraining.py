"""What the annotator language model is pretrained on: pages from which it learns the shapes, and nothing
else.

Five kinds of documents, all from worlds that are made up for one document and then forgotten:

- plain pages, as in the demo corpus, but with facts of nobody, results drawn at random, and German beside the
  English of other German;
- reading: an encyclopedia's article, and statements or questions with answers that it bears out;
- annotations: an instruction, one to three demonstrations (``Input: …`` / ``Output: …`` with calls) and
  one more of the kind;
- notes: a call, with or without its result, in brackets before a page, which the page bears out or has
  nothing to do with;
- lists that are said twice.

A document is a list of `(string, weight)`: the weight of its tokens in the loss, low where nothing can
be predicted.
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
    """A page with `size` blocks for `tool` (None: for any) and at times another; nothing in it is true."""
    blocks = [block(rng, tool or rng.choice(TOOLS)) for _ in range(size)]
    if rng.random() < 0.4:
        blocks.append(block(rng, rng.choice(TOOLS)))
    return pages.paragraphs(rng, blocks)


def block(rng: Random, tool: str) -> list[str]:
    """Sentences that give `tool` something to do."""
    if tool == "Calculator":
        return pages.arithmetic_sentences(rng, honest=False)
    if tool == "Calendar":
        return pages.date_sentences(rng, dates.day(rng))
    if tool == "MT":
        return pages.german_sentences(rng, honest=False)
    entity = facts.entity(rng)
    snippet = f"{entity.name} > {facts.article(entity, rng)}"
    return pages.fact_sentences(rng, entity, rng.choice((1, 1, 2)), tool, snippet)


def plain(rng: Random) -> Document:
    """A page as it is."""
    return [(" " + passage(rng, None, rng.choice((1, 2))).text, 0.5)]


def annotation(rng: Random) -> Document:
    """An annotation prompt of one tool and its completion."""
    tool = rng.choices(TOOLS, (4.5, 2.5, 1.5, 3, 2))[0]
    first = instruction(tool) if rng.random() < 0.7 else rng.choice(REWORDED[tool])
    document: Document = [(first + "\n", 0.1)]
    shown = rng.choice((1, 1, 2, 2, 3, 3))
    for number in range(shown + 1):
        last = number == shown
        # One text in eight gives the tool nothing to do.
        about = tool if rng.random() < 0.88 else rng.choice(TOOLS)
        marked = (
            passage(rng, about) if last or rng.random() < 0.3 else pages.paragraphs(rng, [block(rng, about)])
        )
        document.append(("\nInput:" if number == 0 else "\n\nInput:", 0.3))
        document.append((" " + marked.text, 0.15))
        document.append(("\nOutput:", 0.3))
        document += annotated(rng, marked, tool)
    document.append(("\n\n", 0.3))
    return document


def annotated(rng: Random, marked: MarkedPage, tool: str) -> Document:
    """The text with its calls of one tool, nearly all of them."""
    out: Document = []
    done, text = 0, " " + marked.text
    for call in marked.calls:
        if call.tool == tool and rng.random() < 0.9:
            out.append((text[done : call.position + 1], 0.6))
            out.append((f" [{call.tool}({call.input})]", 2.0))
            done = call.position + 1
    return [*out, (text[done:], 0.6)]


def note(rng: Random) -> Document:
    """A call before a page: with its result (the page agrees), without it, or one of another page."""
    tool = rng.choices(TOOLS, (4, 3, 2, 2, 2))[0]
    marked = passage(rng, tool, rng.choice((1, 1, 2)))
    calls = [call for call in marked.calls if call.tool == tool]
    kind = rng.random()
    if kind > 0.85:
        call = rng.choice([other for other in passage(rng, tool).calls if other.tool == tool])
    else:
        call = rng.choice(calls)
    body = f"{call.tool}({call.input})"
    shown = f" [{body}]" if 0.7 < kind <= 0.85 else f" [{body} -> {call.result}]"
    return [(shown, 0.2), *weighted(marked, call if kind <= 0.7 else None)]


def weighted(marked: MarkedPage, told: GoldCall | None) -> Document:
    """The text, the words that a note tells weighing more."""
    text = " " + marked.text
    if told is None:
        return [(text, 0.5)]
    out: Document = []
    done = 0
    for call in marked.calls:
        if call.tool == told.tool and call.input == told.input:
            longest = len(told.result) if told.tool == "MT" else 22
            end = min(len(text), call.position + 2 + longest)
            stop = text.find(".", call.position + 1, end)
            stop = stop if stop > 0 else end
            out += [(text[done : call.position + 1], 0.5), (text[call.position + 1 : stop], 2.0)]
            done = stop
    return [*out, (text[done:], 0.5)]


def reading(rng: Random) -> Document:
    """An article, at times beside another, then what it says; or the article in the middle of that."""
    asked = facts.entity(rng)
    article, other = (f"{one.name} > {facts.article(one, rng)}" for one in (asked, facts.entity(rng)))
    out: Document = []
    reference = f" ({article})"
    if rng.random() < 0.5:
        shown = [article] if rng.random() < 0.5 else rng.sample([article, other], 2)
        out, reference = [(" " + " ".join(shown), 0.3)], ""
    for name in rng.sample(list(asked.values), rng.choice((1, 2, 2))):
        value = asked.values[name]
        wording = f"Question: {rng.choice(facts.QUESTIONS[name])} Answer:{{c}} {{v}}."
        if rng.random() < 0.5:
            wording = rng.choice(facts.STATEMENTS[name])
        before, after = wording.format(s=asked.name, c="\0", v=value).split(f"\0 {value}")
        out += [(f" {before}{reference}", 0.3), (f" {value}", 2.0), (after, 0.3)]
        reference = ""
    return out


def lists(rng: Random) -> Document:
    """Names and numbers, and the same again."""
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
    """One document of any kind."""
    return rng.choices((annotation, note, plain, reading, lists), (0.36, 0.34, 0.12, 0.12, 0.06))[0](rng)
