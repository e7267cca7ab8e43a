"""WikiText's `.raw` files: one long text for perplexity (paper section 4.3).

In: a file. Out: the text, and its lines, articles and words. A heading ` = Title = ` begins an
article. Words are what white space separates, as the word perplexity counts them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.files import files_below, one_file, read_text

NAME = "wikitext"

_ARTICLE = re.compile(r"^ ?= (?!=)[^\n]*(?<!=) = ?$", re.MULTILINE)
_SUFFIXES = ("raw", "txt", "tokens")


@dataclass(frozen=True, slots=True)
class RunningText:
    """A text with its counts."""

    text: str
    lines: int
    articles: int
    words: int


def wikitext(source: Path) -> RunningText:
    """The text of a file, or of the only .raw file in a folder. Raises BenchmarkFileError."""
    if source.is_dir():
        tests = [path for path in files_below(source, _SUFFIXES) if "test" in path.name]
        source = tests[0] if len(tests) == 1 else one_file(NAME, source, _SUFFIXES)
    text = read_text(source)
    words = len(text.split())
    if not words:
        raise BenchmarkFileError(f"{source}: {NAME} expects a text, and the file holds none")
    if text.lstrip()[:1] in "{[" and text.rstrip()[-1:] in "}]":
        raise BenchmarkFileError(f"{source}: {NAME} expects running text (.raw); found JSON")
    return RunningText(text, text.count("\n") + 1, len(_ARTICLE.findall(text)), words)
