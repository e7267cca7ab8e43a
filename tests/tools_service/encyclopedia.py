"""A handful of articles, and indexes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools_service.config import WikiSearchConfig
from tools_service.indexing.build import build_index

ARTICLES = [
    ("Spin fishing", "Spin fishing uses a fast and lightweight reel. It is popular on rivers."),
    (
        "Fly fishing",
        "Fly fishing uses an artificial fly. The fly is cast with a rod, a reel and a weighted line.",
    ),
    ("Lighthouse", "A lighthouse is a tower that emits light and serves as a beacon for ships."),
    ("Écluse", "Une écluse est un ouvrage hydraulique. 水門 is the Japanese word."),
]


def lines(articles: Sequence[tuple[str, str]]) -> bytes:
    """The articles as jsonl."""
    return b"".join(json.dumps({"title": title, "text": text}).encode() + b"\n" for title, text in articles)


def written(path: Path, articles: Sequence[tuple[str, str]] = ARTICLES) -> Path:
    """The articles as a file."""
    path.write_bytes(lines(articles))
    return path


def config(source: Path, index: Path, **changes: Any) -> WikiSearchConfig:
    """Search `source` with an index at `index`."""
    return WikiSearchConfig(source=(str(source),), index=index, **changes)


def indexed(folder: Path, articles: Sequence[tuple[str, str]] = ARTICLES, **changes: Any) -> WikiSearchConfig:
    """An index of `articles` below `folder`."""
    search = config(written(folder / "articles.jsonl", articles), folder / "index", **changes)
    build_index(search, progress=False)
    return search
