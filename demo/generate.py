"""Write the small world: pages in CCNet's schema, the encyclopedia, the held-out questions.

    python -m demo.generate    # writes pages, held_out, encyclopedia and questions below demo

Everything follows from one seed: the files are the same byte for byte each time. No page names the
people and towns that the questions ask about (the encyclopedia has articles on them, for the
tools), has a question's calculation or German sentence, or uses the questions' wordings. The days
of the questions are later than those of all pages. Questions that need no tool are made of the
pages' own filler sentences; no page has the two of a question next to each other.
`python -m bench.leaks` counts what the questions share with the pages and with pretraining.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from datetime import date, timedelta
from functools import cache
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from demo import arithmetic, dates, facts, german, lexicon, pages
from demo.pages import MarkedPage

HERE = Path(__file__).parent
SEED = 2302
PAGES, HELD_OUT_PAGES, PAGE_FILES = 2_000, 200, 8
QUESTIONS = 100  # per kind
SITES = ("news", "blog", "forum", "shop", "diary", "times", "herald", "post")


class World:
    """The true facts: the entities of the pages, and those held out for the questions."""

    def __init__(self, seed: int = SEED) -> None:
        rng = Random(seed)
        taken: set[str] = set()
        entities = [facts.entity(rng) for _ in range(1_500)]
        unique = [entity for entity in entities if not (entity.name in taken or taken.add(entity.name))]
        values = {value for entity in unique for value in entity.values.values()}
        self.held_out = [entity for entity in unique if entity.name not in values][: 2 * QUESTIONS]
        self.on_pages = [entity for entity in unique if entity not in self.held_out]
        self.articles = {entity.name: facts.article(entity, rng) for entity in unique}


def page(rng: Random, world: World, when: date) -> MarkedPage:
    """A page of one to three blocks of sentences, mostly arithmetic and facts."""
    kinds = rng.choices(
        ("arithmetic", "fact", "date", "german", "filler"), (4, 4, 2, 3, 1), k=rng.choice((1, 1, 2, 2, 3))
    )
    blocks = []
    for kind in kinds:
        if kind == "arithmetic":
            blocks.append(pages.arithmetic_sentences(rng, correct=True))
        elif kind == "fact":
            entity = rng.choice(world.on_pages)
            snippet = f"{entity.name} > {world.articles[entity.name]}"
            blocks.append(pages.fact_sentences(rng, entity, rng.choice((1, 1, 2)), snippet=snippet))
        elif kind == "german":
            blocks.append(pages.german_sentences(rng, correct=True))
        elif kind == "date":
            blocks.append(pages.date_sentences(rng, when))
        else:
            blocks.append([pages.filler(rng), pages.filler(rng)])
    return pages.paragraphs(rng, blocks)


def write_pages(folder: Path, world: World, count: int, files: int, seed: int) -> None:
    """Write `count` pages to `files` files, as CCNet does."""
    rng = Random(seed)
    rows: list[list[dict[str, Any]]] = [[] for _ in range(files)]
    for number in range(count):
        rows[number % files].append(ccnet_row(rng, world, number))
    for file, of_file in enumerate(rows):
        write_lines(folder / f"en_head_{file:04d}.json.gz", of_file)


def web_page(rng: Random, world: World) -> tuple[MarkedPage, date]:
    """A page and the day on which it was written."""
    when = dates.day(rng)
    return page(rng, world, when), when


def ccnet_row(rng: Random, world: World, number: int) -> dict[str, Any]:
    """A page as CCNet's pipeline writes it. Six in ten URLs contain the page's date."""
    marked, when = web_page(rng, world)
    town = lexicon.town(rng).lower()
    domain = f"{rng.choice(SITES)}.{town}.example"
    slug = f"{rng.choice(lexicon.THINGS)}-{rng.choice(lexicon.SHOPS)}"
    path = rng.choices(
        (
            f"{when:%Y/%m/%d}/{slug}",
            f"{when:%Y-%m-%d}-{slug}",
            f"item/{rng.randint(1000, 9999)}/{slug}",
            slug,
        ),
        (4, 2, 2, 2),
    )[0]
    text = marked.text
    digest = hashlib.sha1(text.encode()).hexdigest().upper()
    crawled = when + timedelta(days=rng.randint(3, 400))
    return {
        "url": f"https://{domain}/{path}",
        "date_download": f"{crawled:%Y-%m-%d}T0{number % 10}:00:00Z",
        "digest": f"sha1:{digest[:32]}",
        "length": len(text),
        "nlines": text.count("\n") + 1,
        "source_domain": domain,
        "title": slug.replace("-", " "),
        "raw_content": text,
        "cc_segment": f"crawl-data/segment-{number // 100}/{number:06d}.warc.wet.gz",
        "original_nlines": text.count("\n") + 1,
        "original_length": len(text),
        "language": "en",
        "language_score": 0.99,
        "perplexity": round(rng.uniform(90, 340), 1),
        "bucket": "head",
    }


def write_encyclopedia(file: Path, world: World) -> None:
    """Write one article per line, with title and text."""
    write_lines(file, ({"title": name, "text": text} for name, text in sorted(world.articles.items())))


def write_questions(folder: Path, world: World, used: set[tuple[str, ...]], seed: int) -> None:
    """Write a file of held-out questions per tool, and one of questions that need no tool."""
    rng = Random(seed)
    files = {
        "calculator": calculator_questions(rng, used),
        "wikisearch": [fact_question(rng, entity, "WikiSearch") for entity in world.held_out[:QUESTIONS]],
        "calendar": calendar_questions(rng),
        "plain": plain_questions(rng, Random(seed + 1)),
        "qa": [fact_question(rng, entity, "QA") for entity in world.held_out[QUESTIONS:]],
        "mt": mt_questions(rng),
    }
    for name, rows in files.items():
        write_lines(
            folder / f"{name}.jsonl", ({"id": f"{name}-{n:03d}", **row} for n, row in enumerate(rows))
        )


def calculator_questions(rng: Random, used: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Questions about calculations that no page has (`used`, in canonical form)."""
    questions, seen = [], set(used)
    while len(questions) < QUESTIONS:
        story = arithmetic.story(rng)
        if arithmetic.canonical(story.expression) in seen:
            continue
        seen.add(arithmetic.canonical(story.expression))
        operator = story.expression.split()[1]
        wording = rng.choice(arithmetic.HELD_OUT[operator]).format(s=story.subject, u=story.unit)
        prompt = f"{story.opening} {arithmetic.capital(wording)}"
        questions.append(question(prompt, [story.value], "number", "Calculator"))
    return questions


def fact_question(rng: Random, entity: facts.Entity, tool: str) -> dict[str, Any]:
    """A question about an entity that is on no page. The other tool that could answer is off."""
    other = {"WikiSearch": "QA", "QA": "WikiSearch"}[tool]
    name = rng.choice([name for name in entity.values if name in facts.HELD_OUT])
    prompt = rng.choice(facts.HELD_OUT[name]).format(s=entity.name)
    return question(prompt, [entity.values[name]], "first_words:5", tool) | {"tools_off": [other]}


def calendar_questions(rng: Random) -> list[dict[str, Any]]:
    """Questions about days that are later than all pages. The wordings of a kind take turns."""
    kinds = [(answer, cycle(wordings)) for answer, wordings in dates.HELD_OUT.items()]
    questions = []
    for _ in range(QUESTIONS):
        when = dates.day(rng, date(2024, 1, 1), date(2029, 12, 31))
        answer, wordings = rng.choice(kinds)
        right = answer.format(**dates.parts(when))
        questions.append(question(next(wordings), [right], "first_words:5", "Calendar", when))
    return questions


def mt_questions(rng: Random) -> list[dict[str, Any]]:
    """Questions about German sentences that are on no page. The whole translation must be given."""
    known = {call.input for call in _calls("MT")}
    questions: list[dict[str, Any]] = []
    while len(questions) < QUESTIONS:
        phrase = german.sentence(rng)
        if phrase.german in known:
            continue
        known.add(phrase.german)
        prompt = rng.choice(german.HELD_OUT).format(g=phrase.german)
        questions.append(question(prompt, [phrase.english], "first_words:16", "MT"))
    return questions


def plain_questions(rng: Random, spare: Random) -> list[dict[str, Any]]:
    """Questions that need no tool. One that a page or its own prompt answers is drawn again from `spare`."""
    on_pages = "\n".join(" ".join(text.split()) for text in ground_truth())
    questions: dict[str, dict[str, Any]] = {}
    for drawn in [plain_question(rng) for _ in range(QUESTIONS)]:
        row = drawn
        while row["prompt"] in questions or _is_given_away(row["prompt"], row["answers"][0], on_pages):
            row = plain_question(spare)
        questions[row["prompt"]] = row
    return list(questions.values())


def _is_given_away(prompt: str, answer: str, on_pages: str) -> bool:
    return answer in re.findall(r"\w+", prompt) or f"{prompt} {answer}" in on_pages


def plain_question(rng: Random) -> dict[str, Any]:
    """Two filler sentences, as the pages have them, without the last word."""
    while True:
        opening, _, last = pages.filler(rng)[:-1].rpartition(" ")
        if last.isalpha() and last not in lexicon.SHOPS:
            return question(f"{pages.filler(rng)} {opening}", [last], "first_words:5", None)


def question(
    prompt: str, answers: list[str], scoring: str, tool: str | None, when: date | None = None
) -> dict[str, Any]:
    """A row of a question file (docs/evaluation.md)."""
    return {
        "prompt": prompt,
        "answers": answers,
        "scoring": scoring,
        "date": when.isoformat() if when else None,
        "tool": tool,
    }


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, compressed if the name ends in .gz, with the same bytes each time."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)


@cache
def ground_truth(seed: int = SEED) -> dict[str, MarkedPage]:
    """Every page of the corpus with its calls, by text; used by bench/truth.py."""
    world, rng = World(seed), Random(seed + 1)
    by_text = {}
    for number in range(PAGES):
        before = rng.getstate()
        marked, _ = web_page(rng, world)
        rng.setstate(before)
        ccnet_row(rng, world, number)
        by_text[marked.text] = marked
    return by_text


def _calls(tool: str) -> list[pages.GoldCall]:
    return [call for page in ground_truth().values() for call in page.calls if call.tool == tool]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the demo's small world.")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for pages, held_out, encyclopedia, questions"
    )
    output = parser.parse_args().output
    world = World()
    write_pages(output / "pages", world, PAGES, PAGE_FILES, SEED + 1)
    write_pages(output / "held_out", world, HELD_OUT_PAGES, 1, SEED + 2)
    write_encyclopedia(output / "encyclopedia" / "articles.jsonl", world)
    used = {arithmetic.canonical(call.input) for call in _calls("Calculator")}
    write_questions(output / "questions", world, used, SEED + 3)


if __name__ == "__main__":
    main()
