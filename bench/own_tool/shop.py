"""The shop's world: a price list, pages with some of its prices, and questions about the others.

In: a seed. Out: files. Roses have names in the style of the demo's people, and each has a price that
follows from nothing. A rose of the pages occurs once; a rose of the questions occurs on no page, so
that its price can only be had from the list.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from demo import lexicon, pages
from demo.generate import write_lines

SEED = 71
# The demo's model has two million parameters. It copies a name into a call whose tool it knows something
# like; with another name (Prices) it leaves the input out, as for the calendar.
TOOL = "PriceWikiSearch"
ROSES_ON_PAGES, ROSES_ASKED = 900, 100
_STATEMENTS = (
    "The rose {name} costs{call} {price} coins.",
    "The price of the rose {name} is{call} {price} coins.",
    "The market sells the rose {name} for{call} {price} coins.",
    "To buy the rose {name} you pay{call} {price} coins.",
    "What does the rose {name} cost? Answer:{call} {price} coins.",
)
_QUESTIONS = (
    "The shop sells the rose {name} for",
    "How much is the rose {name}? Answer:",
    "The price of one rose {name} is",
)
PROMPT_EXAMPLES = 3


def price_list(seed: int = SEED) -> dict[str, int]:
    """The price of each rose, in coins: those of the pages first."""
    rng = Random(seed)
    prices: dict[str, int] = {}
    while len(prices) < ROSES_ON_PAGES + ROSES_ASKED:
        name = f"{rng.choice(lexicon.FEMALE + lexicon.MALE)} {lexicon.surname(rng)}"
        prices.setdefault(name, rng.randint(11, 99))
    return prices


def page(rng: Random, name: str, price: int) -> str:
    """A page that says what a rose costs, among sentences of the demo's pages."""
    statement = rng.choice(_STATEMENTS).format(name=name, price=price, call="")
    return pages.paragraphs(rng, [[statement]]).text


def examples(rng: Random) -> list[str]:
    """Texts with a call, for `toolformer-tools prompt`; their roses are of the pages."""
    prices = price_list()
    lines = []
    for name in rng.sample(list(prices)[:ROSES_ON_PAGES], PROMPT_EXAMPLES):
        statement = rng.choice(_STATEMENTS)
        lines.append(
            f"{pages.filler(rng)} "
            + statement.format(name=name, price=prices[name], call=f" [{TOOL}({name})]")
        )
    return lines


def write(folder: Path, seed: int = SEED) -> None:
    """Write prices.json, examples.txt, pages.jsonl and roses.jsonl, the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    prices, rng = price_list(seed), Random(seed + 1)
    names = list(prices)
    on_pages, asked = names[:ROSES_ON_PAGES], names[ROSES_ON_PAGES:]
    (folder / "prices.json").write_text(json.dumps(prices), encoding="utf-8")
    (folder / "examples.txt").write_text("\n".join(examples(rng)) + "\n", encoding="utf-8")
    write_lines(folder / "pages.jsonl", ({"text": page(rng, name, prices[name])} for name in on_pages))
    write_lines(
        folder / "roses.jsonl",
        (
            {
                "id": f"roses-{number:03d}",
                "prompt": rng.choice(_QUESTIONS).format(name=name),
                "answers": [str(prices[name])],
                "scoring": "number",
                "date": None,
                "tool": TOOL,
            }
            for number, name in enumerate(asked)
        ),
    )
