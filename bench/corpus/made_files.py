"""Corpus files in the shapes of CCNet, Dolma, C4 and FineWeb, from a seed.

In: a folder, a seed, the number of characters. Out: four files of the same size in characters: .json.gz
(CCNet), .jsonl.zst (Dolma), .jsonl (C4), .parquet (FineWeb). A document is a page of some lines. About
half of its lines are pages of the demo (English, arithmetic, dates in the URLs, German sentences), the
others invented sentences with ever new rare words (bench/texts.py), as names and spellings are in real text.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from bench import texts

_PAGES = Path("demo/pages")
_ARTICLES = Path("demo/encyclopedia/articles.jsonl")
_CHARACTERS = 2_800  # of a page on average, as in the C4 and CCNet samples of decision 0007
_WORDS_A_LINE = 60


@dataclass(frozen=True)
class Page:
    """A document before it has the shape of a corpus."""

    url: str
    title: str
    text: str


def write_files(folder: Path, seed: int, characters: int) -> list[Path]:
    """The four files; each has at least a quarter of `characters`. The same arguments, the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = _pages(seed)
    parts = [list(_until(stream, characters // 4)) for _ in range(4)]
    files = [
        folder / "2019-09" / "en_head_0000.json.gz",
        folder / "dolma" / "cc_en_head-0000.jsonl.zst",
        folder / "c4" / "c4-train.00000.jsonl",
        folder / "fineweb" / "000_00000.parquet",
    ]
    for file in files:
        file.parent.mkdir(exist_ok=True)
    ccnet, dolma, c4, fineweb = parts
    files[0].write_bytes(gzip.compress(_lines(map(_ccnet, ccnet)), mtime=0))
    files[1].write_bytes(zstandard.compress(_lines(map(_dolma, dolma))))
    files[2].write_bytes(_lines(map(_c4, c4)))
    pq.write_table(pa.Table.from_pylist([_fineweb(page) for page in fineweb]), files[3])
    return files


def _until(pages: Iterator[Page], characters: int) -> Iterator[Page]:
    while characters > 0:
        page = next(pages)
        characters -= len(page.text)
        yield page


def _pages(seed: int) -> Iterator[Page]:
    random = np.random.default_rng(seed)
    demo = [
        json.loads(line)
        for file in sorted(_PAGES.glob("*.json.gz"))
        for line in gzip.decompress(file.read_bytes()).splitlines()
    ]
    invented = texts.articles(texts.read([_ARTICLES]), 2**62, seed)
    while True:
        first = demo[int(random.integers(len(demo)))]
        characters = random.exponential(_CHARACTERS)
        lines = [first["raw_content"]]
        while sum(map(len, lines)) < characters:
            if random.random() < 0.5:
                lines.append(demo[int(random.integers(len(demo)))]["raw_content"])
            else:
                words = next(invented)[1].split()
                lines += [" ".join(words[n : n + _WORDS_A_LINE]) for n in range(0, len(words), _WORDS_A_LINE)]
        yield Page(first["url"], first["title"], "\n".join(lines))


def _lines(records: Iterator[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _ccnet(page: Page) -> dict[str, Any]:
    return {
        "url": page.url,
        "date_download": "2019-02-15T00:00:00Z",
        "digest": f"sha1:{'0' * 32}",
        "length": len(page.text),
        "nlines": page.text.count("\n") + 1,
        "source_domain": page.url.split("/")[2],
        "title": page.title,
        "raw_content": page.text,
        "cc_segment": "crawl-data/CC-MAIN-2019-09/segments/1550247479101.30/wet/00000.warc.wet.gz",
        "original_nlines": 120,
        "original_length": 2 * len(page.text),
        "line_ids": list(range(page.text.count("\n") + 1)),
        "language": "en",
        "language_score": 0.98,
        "perplexity": 280.3,
        "bucket": "head",
    }


def _dolma(page: Page) -> dict[str, Any]:
    return {
        "id": page.url,
        "text": page.text,
        "source": "common-crawl",
        "added": "2023-04-11T09:57:03.044571+00:00",
        "created": "2019-02-15T00:00:00Z",
        "metadata": {"url": page.url, "title": page.title, "bucket": "head", "length": len(page.text)},
    }


def _c4(page: Page) -> dict[str, Any]:
    return {"text": page.text, "timestamp": "2019-04-25T12:57:54Z", "url": page.url}


def _fineweb(page: Page) -> dict[str, Any]:
    return {
        "text": page.text,
        "id": f"<urn:uuid:{page.url}>",
        "dump": "CC-MAIN-2019-09",
        "url": page.url,
        "language": "en",
        "language_score": 0.98,
        "token_count": len(page.text) // 4,
    }
