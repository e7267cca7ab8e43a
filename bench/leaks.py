"""What the demo's questions share with its training pages and with the annotator's pretraining text.

    python -m bench.leaks                 # the pages only, seconds
    python -m bench.leaks --steps 2200    # the pretraining text of the committed annotator too, minutes

Out: a line for each count. "On the pages" means in a page of demo/pages, "in pretraining" means in a
document of a batch that `python -m demo.pretrain --steps N` trains on from its first step; a run that was
interrupted and resumed draws other documents. Line breaks count as spaces.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

from demo import arithmetic, generate
from demo.pages import GoldCall
from tools_service.base.checkpoints import load_tokenizer

ANNOTATOR = generate.HERE / "models" / "annotator"
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.?!]) ")
_CALCULATION = re.compile(r"\[Calculator\((\d+(?: [-+*/] \d+)+)\)")


def questions(name: str) -> list[dict[str, Any]]:
    """The rows of a question file of the demo."""
    file = generate.HERE / "questions" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def held_out_pages() -> list[str]:
    """The texts on which the demo measures perplexity, each in one line."""
    files = sorted((generate.HERE / "held_out").glob("*.json.gz"))
    lines = b"".join(gzip.decompress(file.read_bytes()) for file in files).splitlines()
    return [one_line(json.loads(line)["raw_content"]) for line in lines]


def one_line(text: str) -> str:
    """`text` with single spaces for every white space."""
    return " ".join(text.split())


def found_with_answer(rows: Iterable[dict[str, Any]], texts: Sequence[str]) -> list[str]:
    """The distinct prompts that stand in one of `texts` (of one line) with an answer right after them."""
    whole = "\n".join(texts)
    asked = {row["prompt"]: row["answers"] for row in rows}
    return [
        prompt
        for prompt, answers in asked.items()
        if any(f"{one_line(prompt)} {answer}" in whole for answer in answers)
    ]


def known_endings(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The plain questions whose last sentence, with its answer, is in one of `texts`."""
    endings = [{**row, "prompt": _SENTENCE.split(row["prompt"])[-1]} for row in questions("plain")]
    whole = "\n".join(texts)
    return [row for row in endings if f"{row['prompt']} {row['answers'][0]}" in whole]


def calculations(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """The calculations with the prompt's numbers, in canonical form, that give the answer."""
    numbers = re.findall(r"\d+", row["prompt"])
    written = [f" {sign} ".join(order) for sign in "+-*/" for order in (numbers, numbers[::-1])]
    right = [each for each in written if arithmetic.evaluate(each) == int(row["answers"][0])]
    return [arithmetic.canonical(each) for each in right]


def calculator_overlap(calls: Iterable[GoldCall]) -> dict[str, int]:
    """How many calculator questions share with `calls` their calculation, their operands, each number."""
    seen = {arithmetic.canonical(call.input) for call in calls if call.tool == "Calculator"}
    operands = {tuple(sorted(each[1:])) for each in seen}
    numbers = {number for each in seen for number in each[1:]}
    rows = questions("calculator")
    asked = [re.findall(r"\d+", row["prompt"]) for row in rows]
    return {
        "calculation": sum(bool(seen.intersection(calculations(row))) for row in rows),
        "operands": sum(tuple(sorted(each)) in operands for each in asked),
        "every number": sum(numbers.issuperset(each) for each in asked),
    }


def names_in(texts: Iterable[str], facts: dict[str, set[str]]) -> tuple[set[str], set[str]]:
    """The names of `facts` (of one or two words) that are in a text, and those that are in a text with
    one of their values."""
    named, with_value = set(), set()
    for text in texts:
        words = _WORD.findall(text)
        found = facts.keys() & {*words, *map(" ".join, pairwise(words))}
        named |= found
        with_value |= {name for name in found if any(value in text for value in facts[name])}
    return named, with_value


def asked_facts() -> dict[str, set[str]]:
    """The names that the WikiSearch and QA questions ask about, each with the values asked for."""
    facts: dict[str, set[str]] = {}
    rows = questions("wikisearch") + questions("qa")
    for entity, row in zip(generate.World().held_out, rows, strict=True):
        facts.setdefault(entity.name, set()).update(row["answers"])
    return facts


def pretraining_texts(steps: int) -> Iterator[str]:
    """The documents of the first `steps` batches."""
    from demo.pretrain import Batches  # torch

    tokenizer = load_tokenizer(str(ANNOTATOR), "tokenizer")
    decode = tokenizer.backend_tokenizer.decode_batch
    for ids, _ in islice(Batches(tokenizer, seed=1), steps):
        yield from map(one_line, decode(ids.tolist(), skip_special_tokens=True))


def print_pages() -> None:
    """The counts that need no pretraining text."""
    truth = generate.ground_truth()
    texts = [one_line(text) for text in truth]
    for file in sorted((generate.HERE / "questions").glob("*.jsonl")):
        rows = questions(file.stem)
        distinct, leaked = len({row["prompt"] for row in rows}), len(found_with_answer(rows, texts))
        print(
            f"{file.stem}: {distinct} distinct prompts of {len(rows)}; {leaked} on the pages with the answer"
        )
    print(f"plain: {len(known_endings(texts))} last sentences of 100 on the pages with the answer")
    sentences = [each for text in held_out_pages() for each in _SENTENCE.split(text)]
    whole = "\n".join(texts)
    known = sum(each in whole for each in sentences)
    print(f"held-out pages (perplexity): {known} of their {len(sentences)} sentences are on the pages")
    calls = [call for page in truth.values() for call in page.calls]
    for what, count in calculator_overlap(calls).items():
        print(f"calculator: {what} of a question on the pages: {count} of 100")


def print_pretraining(steps: int) -> None:
    """The counts in the pretraining text of `steps` steps."""
    texts = list(pretraining_texts(steps))
    facts = asked_facts()
    named, with_answer = names_in(texts, facts)
    people = sum(" " in name for name in named)
    print(f"pretraining: {len(texts):,} documents")
    print(
        f"names asked about: {len(named)} of {len(facts)} in pretraining ({people} of people, the others of "
        f"towns); {len(with_answer)} in a document that has the answer too"
    )
    print(f"plain: {len(known_endings(texts))} last sentences of 100 in pretraining with the answer")
    for name in ("plain", "mt"):
        rows = questions(name)
        print(f"{name}: {len(found_with_answer(rows, texts))} prompts in pretraining with the answer")
    seen = {arithmetic.canonical(each) for text in texts for each in _CALCULATION.findall(text)}
    shared = sum(bool(seen.intersection(calculations(row))) for row in questions("calculator"))
    print(f"calculator: calculation of a question in a call in pretraining: {shared} of 100")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Count what the demo's questions share with training texts.")
    parser.add_argument("--steps", type=int, default=0, help="also read this many steps of pretraining")
    steps = parser.parse_args().steps
    print_pages()
    if steps:
        print_pretraining(steps)


if __name__ == "__main__":
    main()
