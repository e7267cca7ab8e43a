"""Looks for the first texts of a corpus that a tool selects (step 1), and counts the others by reason.

In: `TryConfig` and the method with one tool. Out: a `Scan`. Texts and ids are those of annotate. Uses the
model's tokenizer to split documents, but no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from pipeline.base.config import MethodConfig, TryConfig
from pipeline.base.records import Document, Text, reason_kind
from pipeline.corpus.files import files_of_slice, find_files
from pipeline.corpus.texts import read_corpus, require_readable
from pipeline.method.selection import Selection, select
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.base.errors import ConfigurationError

TYPED = "--text"
"""The source of a text that was typed."""
_MAX_REASONS = 5
_NO = "no: "


class NothingSelectedError(ConfigurationError):
    """No text that the scan looked at is selected."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The texts to try, and what became of the others."""

    selected: list[tuple[Text, Selection]]
    looked_at: int
    turned_down: dict[str, int] = field(default_factory=dict)
    """Texts by the reason against them, skipped ones included; the largest number first."""
    complete: bool = True
    """Whether the corpus has no further texts."""


def scan(config: TryConfig, method: MethodConfig, tell: Callable[[str], None]) -> Scan:
    """The first selected texts, or the typed one. `tell` is told how far the scan is.

    Raises CorpusError for a corpus that cannot be read, and NothingSelectedError.
    """
    [tool] = method.tools
    if config.text is not None:
        typed = Text(0, Document(TYPED), config.text)
        return Scan([(typed, select(tool, typed, method))], looked_at=1)
    files = files_of_slice(find_files(config.corpus).files, config.corpus)
    require_readable(files, config.corpus)
    count = TokenCounter(config.model.path)
    texts = read_corpus(files, config.corpus, count, (*config.method.tools, tool))
    selected: list[tuple[Text, Selection]] = []
    turned_down: Counter[str] = Counter()
    looked_at, complete = 0, True
    for text in islice(texts, config.max_scanned):
        looked_at += 1
        if text.skipped is not None:
            turned_down[f"skipped: {reason_kind(text.skipped)}"] += 1
        elif (selection := select(tool, text, method)).chosen:
            selected.append((text, selection))
        else:
            turned_down[reason_kind(selection.rule.removeprefix(_NO))] += 1
        if len(selected) == config.texts:
            complete = False
            break
        tell(f"looking for texts: {looked_at:,} looked at, {len(selected):,} selected")
    else:
        complete = looked_at < config.max_scanned
    result = Scan(selected, looked_at, dict(turned_down.most_common()), complete)
    if not selected:
        raise NothingSelectedError(_nothing_selected(tool, result))
    return result


def shown_reasons(turned_down: dict[str, int]) -> str:
    """The reasons with their numbers, in one line."""
    reasons = [f"{number:,} x {reason}" for reason, number in turned_down.items()]
    more = [f"{len(reasons) - _MAX_REASONS} more reasons"] if len(reasons) > _MAX_REASONS else []
    return ", ".join(reasons[:_MAX_REASONS] + more)


def _nothing_selected(tool: str, result: Scan) -> str:
    where = "of the corpus" if result.complete else "looked at (--max-scanned)"
    return (
        f"none of the {result.looked_at:,} texts {where} is selected for {tool}: "
        f"{shown_reasons(result.turned_down)}. Change the tool's `select`, name another --corpus, or try one "
        "text with --text"
    )
