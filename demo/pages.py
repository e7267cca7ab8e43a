"""Web pages of the small world, with the positions where a perfect annotator would call a tool.

A page has a few paragraphs of arithmetic, facts, dates and filler. The generated sentences contain
marks at the calls' positions. `MarkedPage` separates the text from its calls; the pipeline sees
only the text. The calls are used for pages in the form of annotations (pretraining.py), and for
checking what the pipeline kept (bench/truth.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from random import Random

from demo import arithmetic, dates, facts, german, lexicon

_MARK = re.compile("\x01([^\x02]*)\x02([^\x02]*)\x02([^\x03]*)\x03")


@dataclass(frozen=True)
class GoldCall:
    """A call that belongs before character `position` of the text."""

    position: int
    tool: str
    input: str
    result: str


@dataclass(frozen=True)
class MarkedPage:
    """A text and its calls, sorted by position."""

    text: str
    calls: tuple[GoldCall, ...]

    @staticmethod
    def parse(marked: str) -> MarkedPage:
        """Separate the text from the marks in it."""
        calls, removed = [], 0
        for match in _MARK.finditer(marked):
            calls.append(GoldCall(match.start() - removed, match[1], match[2], match[3]))
            removed += len(match[0])
        return MarkedPage(_MARK.sub("", marked), tuple(calls))


def mark(tool: str, argument: str, result: str) -> str:
    """The mark of a call. It stands before the space of the word that the call helps to predict."""
    return f"\x01{tool}\x02{argument}\x02{result}\x03"


FILLER = (
    "The weather was mild and the streets were quiet.",
    "Nobody had expected that.",
    "The bus number {n} stops at the corner.",
    "The house at {n} {street} Street is painted green.",
    "About {n}00 people came to the fair.",
    "It took {n} minutes to walk there.",
    "A cat slept on the wall.",
    "The room is on floor {d}.",
    "You can call us on 555 {n} {n}.",
    "The old clock in the {shop} struck {d}.",
    "Page {n} of the book shows a map.",
    "The radio played a slow song.",
    "We will come back to that later.",
    "The {shop} closes at {d} in the evening.",
    "All of this is well known in the area.",
    "Version {d}.{d} of the program was slow.",
    "The train from platform {d} was late again.",
    "There is a small garden behind the {shop}.",
    "Route {n} was closed for repairs.",
    "Some of the neighbours still talk about it.",
    "The temperature fell to {d} degrees.",
    "It smelled of fresh bread and coffee.",
    "Please send your questions to the editor.",
    "The score was {d} to {d}.",
    "Nothing else happened that week.",
    "The door was left open all night.",
    "Room {n} has a view of the lake.",
    "In the {shop} the lights went out twice.",
    "Many readers wrote to thank us.",
    "The path leads up the hill and down again.",
)


def filler(rng: Random) -> str:
    """An unrelated sentence, often with a number."""
    return rng.choice(FILLER).format(
        n=rng.randint(10, 99),
        d=rng.randint(2, 12),
        street=rng.choice(lexicon.STREETS),
        shop=rng.choice(lexicon.SHOPS),
    )


def arithmetic_sentences(rng: Random, correct: bool) -> list[str]:
    """A story: its opening, sometimes a filler sentence, its closing."""
    story = arithmetic.story(rng, correct)
    call = mark("Calculator", story.expression, story.value)
    closing = rng.choice(story.closings).format(s=story.subject, u=story.unit, v=story.value, c=call)
    sentences = [story.opening, arithmetic.capital(closing)]
    if rng.random() < 0.3:
        sentences.insert(1, filler(rng))
    return sentences


def fact_sentences(
    rng: Random, entity: facts.Entity, count: int = 1, tool: str | None = None, snippet: str = ""
) -> list[str]:
    """Statements of `count` attributes of an entity. One in five is a question with its answer.

    They are marked for `tool`: WikiSearch (whose result is `snippet`) or QA; None marks them for
    both.
    """
    sentences = []
    for name in rng.sample(list(entity.values), min(count, len(entity.values))):
        question = rng.choice(facts.QUESTIONS[name]).format(s=entity.name)
        value = entity.values[name]
        calls = {"WikiSearch": mark("WikiSearch", entity.name, snippet), "QA": mark("QA", question, value)}
        call = calls[tool] if tool else "".join(calls.values())
        if rng.random() < 0.2:
            sentences.append(f"{question} Answer:{call} {value}.")
        else:
            sentences.append(rng.choice(facts.STATEMENTS[name]).format(s=entity.name, v=value, c=call))
    return sentences


def german_sentences(rng: Random, correct: bool) -> list[str]:
    """A German sentence and its translation, or that of another sentence (`correct=False`)."""
    phrase = german.sentence(rng)
    meaning = phrase.english if correct else german.sentence(rng).english
    call = mark("MT", phrase.german, meaning)
    return [rng.choice(german.STATEMENTS).format(g=phrase.german, e=meaning, c=call)]


def date_sentences(rng: Random, when: date) -> list[str]:
    """One sentence that states the day."""
    call = mark("Calendar", "", dates.sentence(when))
    return [rng.choice(dates.STATEMENTS).format(**dates.parts(when), c=call)]


def paragraphs(rng: Random, blocks: list[list[str]]) -> MarkedPage:
    """Shuffle the blocks of sentences, insert filler between them, and break some lines."""
    rng.shuffle(blocks)
    sentences: list[str] = []
    for block in blocks:
        if rng.random() < 0.5:
            sentences.append(filler(rng))
        sentences.extend(block)
    if rng.random() < 0.5:
        sentences.append(filler(rng))
    text = sentences[0]
    for sentence in sentences[1:]:
        text += ("\n" if rng.random() < 0.12 else " ") + sentence
    return MarkedPage.parse(text)
