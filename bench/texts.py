"""Invented articles by the million, for measuring search: seeded, and with a vocabulary that grows.

Sentences are recombined into articles of about 400 words, each article from sentences that lie near each
other, so that it has a subject; the words of the tail drift (`river` becomes `riverka`, `riverlomi`, …), so
that rare terms keep coming, as names do. The sentences are those of jsonl files with `text`, or are drawn
from an invented vocabulary by Zipf's law. Nothing here is a language; the shape of its posting lists is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS_PER_ARTICLE = 400
# English's most frequent words, about 45 % of its tokens; invented sentences take them as they are.
_FREQUENT = (
    "the of and in to a is was for as on by with that from it at his an were are which this be or had he "
    "not also has their its one but have first new been who they two her she other when time during there "
    "into all year after more used some can would most only city over him such where made may years many"
)
FREQUENT = tuple(_FREQUENT.split())

_SYLLABLES = [c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"]
_DRIFT = 0.08  # of the words beyond the frequent ones
_REACH = 400  # an article's sentences lie within as many of each other


@dataclass(frozen=True)
class Language:
    """Words by number, the most frequent first, and sentences as arrays of numbers."""

    words: list[str]
    sentences: list[np.ndarray]


def spell(number: int) -> str:
    """A suffix or an invented word for `number` > 0; different numbers are spelt differently."""
    syllables = []
    while number:
        number, digit = divmod(number - 1, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)


def read(files: Sequence[Path]) -> Language:
    """The language of real texts: jsonl with `text`."""
    texts = (json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8"))
    sentences = [
        words for text in texts for one in re.split(r"(?<=[.!?])\s", text) if len(words := one.split()) > 3
    ]
    ranked = [word for word, _ in Counter(word for one in sentences for word in one).most_common()]
    number = {word: n for n, word in enumerate(ranked)}
    return Language(ranked, [np.array([number[word] for word in one]) for one in sentences])


def invent(seed: int = 0, types: int = 40_000, sentences: int = 60_000) -> Language:
    """A language of `types` words by Zipf and Mandelbrot's law, p(rank) ~ 1 / (rank + 2.7)."""
    random = np.random.default_rng(seed)
    words = [*FREQUENT, *(spell(100 + n) for n in range(types - len(FREQUENT)))]
    cumulative = np.cumsum(1 / (np.arange(types) + 2.7))
    lengths = random.integers(8, 35, size=sentences)
    tokens = np.searchsorted(cumulative, random.random(int(lengths.sum())) * cumulative[-1])
    return Language(words, np.split(tokens, np.cumsum(lengths)[:-1]))


def articles(language: Language, number: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """`number` articles as (title, text)."""
    random = np.random.default_rng(seed)
    count, size = len(language.sentences), len(language.words)
    spelt: dict[int, str] = {}
    mean = sum(map(len, language.sentences)) / count
    for _ in range(number):
        length = max(3, int(random.exponential(WORDS_PER_ARTICLE) / mean))
        chosen = (random.integers(count) + random.integers(_REACH, size=length)) % count
        tokens = np.concatenate([language.sentences[n] for n in chosen])
        drifts = (random.random(len(tokens)) < _DRIFT) & (tokens >= len(FREQUENT))
        steps = np.minimum(random.random(len(tokens)) ** (-1 / 0.9), 1e6).astype(np.int64)
        numbers = (tokens + size * (steps * drifts)).tolist()
        words = [spelt.get(n) or spelt.setdefault(n, _word(language, n)) for n in numbers]
        ends = np.cumsum([len(language.sentences[n]) for n in chosen]) - 1
        for end in ends.tolist():
            words[end] = f"{words[end].rstrip('.!?')}."
        rare = np.argsort(tokens[:60], kind="stable")[-3:]
        yield " ".join(words[n].strip(".,") for n in sorted(rare)), " ".join(words)
        if len(spelt) > 2_000_000:
            spelt.clear()


def _word(language: Language, number: int) -> str:
    steps, word = divmod(number, len(language.words))
    return language.words[word].rstrip(".,;:!?)") + spell(steps) if steps else language.words[word]


def queries(passages: Sequence[str], number: int, seed: int = 0) -> list[str]:
    """`number` queries on `passages`: search terms of 2 to 6 words as a model writes them, and every fourth a
    question.
    """
    random = np.random.default_rng(seed)
    made = []
    for n in range(number):
        words = passages[int(random.integers(len(passages)))].split()
        start = int(random.integers(max(1, len(words) - 12)))
        if n % 4:
            content = [word for word in words[start:] if word.lower() not in FREQUENT]
            made.append(" ".join(content[: int(random.integers(2, 7))]))
        else:
            made.append(f"what is the {' '.join(words[start : start + int(random.integers(7, 12))])}?")
    return made
