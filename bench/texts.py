"""Invented articles by the million, for measuring search: seeded, with ever new rare words.

Sentences are recombined into articles of about 400 words. An article takes sentences that lie near
each other, so that it has a subject. Rare words are varied (`river` becomes `riverka`, `riverlomi`,
…), so that new rare terms keep coming, as names do in real text. The sentences come from jsonl
files with `text`, or are drawn from an invented vocabulary by Zipf's law. The result resembles no
language, but its posting lists have the shape of real ones.
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
# The most frequent words of English, about 45 % of its tokens. They are never varied.
_FREQUENT = (
    "the of and in to a is was for as on by with that from it at his an were are which this be or had he "
    "not also has their its one but have first new been who they two her she other when time during there "
    "into all year after more used some can would most only city over him such where made may years many"
)
FREQUENT = tuple(_FREQUENT.split())

_SYLLABLES = [c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"]
_VARIED_SHARE = 0.08  # of the words that are not frequent
_CROSSING_SHARE = 0.3  # of the words of a mixed sentence, where it goes on as another does
_MAX_MIXED_WORDS = 40
_ARTICLES_AT_ONCE = 500
_WINDOW = 400  # an article takes its sentences from so many neighbouring ones


@dataclass(frozen=True)
class Language:
    """Words by number, the most frequent first, and sentences as arrays of these numbers."""

    words: list[str]
    sentences: list[np.ndarray]


def spell(number: int) -> str:
    """A suffix or an invented word for `number` > 0. Different numbers give different words."""
    syllables = []
    while number:
        number, digit = divmod(number - 1, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)


def read(files: Sequence[Path]) -> Language:
    """The language of real texts, from jsonl files with `text`."""
    texts = (json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8"))
    split = (sentence.split() for text in texts for sentence in re.split(r"(?<=[.!?])\s", text))
    sentences = [words for words in split if len(words) > 3]
    ranked = [word for word, _ in Counter(word for words in sentences for word in words).most_common()]
    number = {word: n for n, word in enumerate(ranked)}
    return Language(ranked, [np.array([number[word] for word in words]) for words in sentences])


def mix(language: Language, sentences: int, seed: int = 0) -> Language:
    """The same words in new `sentences`: at some words, a sentence goes on as another one does.

    So pairs of words are as in the texts, and few sentences come often. Neighbours begin alike.
    """
    random = np.random.default_rng(seed)
    tokens = np.concatenate(language.sentences).astype(np.int32)
    is_end = np.zeros(len(tokens), dtype=bool)
    is_end[np.cumsum([len(sentence) for sentence in language.sentences]) - 1] = True
    places, counts = np.argsort(tokens, kind="stable"), np.bincount(tokens)  # of each word
    starts = np.cumsum(counts) - counts
    at = np.sort(random.integers(len(tokens), size=sentences))
    mixed = np.full((sentences, _MAX_MIXED_WORDS), -1, dtype=np.int32)
    going_on = np.arange(sentences)
    for column in range(_MAX_MIXED_WORDS):
        words = tokens[at[going_on]]
        mixed[going_on, column] = words
        other = places[starts[words] + (random.random(len(words)) * counts[words]).astype(np.int64)]
        at[going_on] = np.where(random.random(len(words)) < _CROSSING_SHARE, other, at[going_on])
        going_on = going_on[~is_end[at[going_on]]]
        at[going_on] += 1
    return Language(language.words, np.split(mixed[mixed >= 0], np.cumsum((mixed >= 0).sum(axis=1))[:-1]))


def invent(seed: int = 0, types: int = 40_000, sentences: int = 60_000) -> Language:
    """A language of `types` words by the Zipf-Mandelbrot law, p(rank) ~ 1 / (rank + 2.7)."""
    random = np.random.default_rng(seed)
    words = [*FREQUENT, *(spell(100 + n) for n in range(types - len(FREQUENT)))]
    cumulative = np.cumsum(1 / (np.arange(types) + 2.7))
    lengths = random.integers(8, 35, size=sentences)
    tokens = np.searchsorted(cumulative, random.random(int(lengths.sum())) * cumulative[-1])
    return Language(words, np.split(tokens, np.cumsum(lengths)[:-1]))


def articles(language: Language, number: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """`number` articles as (title, text)."""
    random = np.random.default_rng(seed)
    tokens, vocabulary = np.concatenate(language.sentences), np.array(language.words, dtype=object)
    sizes = np.array([len(sentence) for sentence in language.sentences])
    starts = np.cumsum(sizes) - sizes
    varied: dict[int, str] = {}
    for first in range(0, number, _ARTICLES_AT_ONCE):
        articles = min(_ARTICLES_AT_ONCE, number - first)
        lengths = np.maximum(3, random.exponential(WORDS_PER_ARTICLE / sizes.mean(), articles).astype(int))
        subjects = np.repeat(random.integers(len(sizes), size=articles), lengths)
        picked = (subjects + random.integers(_WINDOW, size=len(subjects))) % len(sizes)
        ends = np.cumsum(sizes[picked])  # of the sentences
        shifts = starts[picked] - (ends - sizes[picked])
        drawn = tokens[np.repeat(shifts, sizes[picked]) + np.arange(ends[-1])]
        words = vocabulary[drawn]
        at = np.flatnonzero((random.random(len(drawn)) < _VARIED_SHARE) & (drawn >= len(FREQUENT)))
        steps = np.minimum(random.random(len(at)) ** (-1 / 0.9), 1e6).astype(np.int64)
        numbers = drawn[at] + len(vocabulary) * steps
        words[at] = [varied.get(n) or varied.setdefault(n, _word(language, n)) for n in numbers.tolist()]
        words[ends - 1] = [f"{word.rstrip('.!?')}." for word in words[ends - 1]]
        begin = 0
        for end in ends[np.cumsum(lengths) - 1].tolist():
            rare = begin + np.sort(np.argsort(drawn[begin : begin + 60], kind="stable")[-3:])
            yield " ".join(word.strip(".,") for word in words[rare]), " ".join(words[begin:end])
            begin = end
        if len(varied) > 2_000_000:
            varied.clear()


def _word(language: Language, number: int) -> str:
    steps, word = divmod(number, len(language.words))
    return language.words[word].rstrip(".,;:!?)") + spell(steps)


def queries(passages: Sequence[str], number: int, seed: int = 0) -> list[str]:
    """`number` queries for `passages`: 2 to 6 search terms; every fourth is a question."""
    random = np.random.default_rng(seed)
    written = []
    for n in range(number):
        words = passages[int(random.integers(len(passages)))].split()
        start = int(random.integers(max(1, len(words) - 12)))
        if n % 4:
            content = [word for word in words[start:] if word.lower() not in FREQUENT]
            written.append(" ".join(content[: int(random.integers(2, 7))]))
        else:
            written.append(f"what is the {' '.join(words[start : start + int(random.integers(7, 12))])}?")
    return written
