"""README.md of an output folder: the card of a data set, for people and for the library `datasets`.

In: what a run was asked and what came out. Out: a page whose header says which files hold the rows, so
that `datasets.load_dataset(FOLDER)` reads those and no other. The licence is the user's to choose: a card
that was edited is kept as it is.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.storage.manifest import AnnotationManifest
from pipeline.storage.row_files import ROWS
from tools_service.base.files import atomic_write, writing

logger = logging.getLogger(__name__)

CARD = "README.md"
_MARK = "<!-- Written by toolformer-on-ray. An edited page is never replaced. "


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of a card."""

    title: str
    facts: Mapping[str, object]
    """What was asked and counted, by name."""
    tools: Mapping[str, Mapping[str, object]]
    """Thresholds and counts, by tool; the same names for each tool."""
    versions: Mapping[str, str]
    created: str
    data_files: str
    """Pattern of the files with the rows, relative to the folder."""

    def written(self) -> str:
        """The page."""
        lines = [
            "---",
            "# license: choose one and write it here",
            "tags:\n- tool-use\n- toolformer",
            "configs:\n- config_name: default\n  data_files:\n  - split: train",
            f'    path: "{self.data_files}"',
            "---",
            f"\n# {self.title}\n",
            f"Made {self.created} with [toolformer-on-ray](https://arxiv.org/abs/2302.04761).\n",
            "**Licence:** none is given here. Texts and results keep the licences of their sources; write "
            "`license:` into the header before you publish.\n",
            *(f"- {name}: {cell(value)}" for name, value in self.facts.items()),
            "",
            *self._table(),
            "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in self.versions.items()) + ".",
        ]
        return marked_page("\n".join(lines) + "\n\n")

    def _table(self) -> list[str]:
        names = next((list(numbers) for numbers in self.tools.values()), [])
        rows = [[tool, *(numbers[name] for name in names)] for tool, numbers in self.tools.items()]
        return table(["tool", *names], rows) if names else []


def table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [
        f"| {' | '.join(names)} |",
        "|---" * len(names) + "|",
        *(f"| {' | '.join(map(cell, row))} |" for row in rows),
    ]


def marked_page(page: str) -> str:
    """The page with a last line that tells later whether somebody has edited it."""
    return f"{page}{_MARK}{_digest(page)} -->\n"


class Page(Protocol):
    """A card that can be written."""

    def written(self) -> str:
        """The page, as `marked_page` gives it."""
        ...


def write_card(folder: Path, card: Page, *, earlier: Path | None = None) -> None:
    """Write README.md into `folder`. One that a user edited, there or in `earlier`, stays instead."""
    page = (earlier or folder) / CARD
    if _is_edited(page):
        logger.warning("%s was edited and stays as it is", page)
        if earlier is not None and earlier != folder:
            with writing(folder):
                shutil.copyfile(page, folder / CARD)
        return
    atomic_write(folder / CARD, card.written())


def edited_card(folder: Path) -> str | None:
    """The card in `folder` if a user edited or wrote it, else None."""
    page = folder / CARD
    return page.read_text(encoding="utf-8", errors="replace") if _is_edited(page) else None


def _is_edited(path: Path) -> bool:
    try:
        page, mark, digest = path.read_bytes().decode("utf-8", "replace").rpartition(_MARK)
    except FileNotFoundError:
        return False
    return not mark or digest.removesuffix(" -->\n") != _digest(page)


def _digest(page: str) -> str:
    return hashlib.blake2b(page.encode("utf-8", "replace"), digest_size=8).hexdigest()


def cell(value: object) -> str:
    """Text of a user, a path for example, in one line and without the signs of a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def annotation_card(manifest: AnnotationManifest) -> Card:
    """The card of a finished run of annotate."""
    config, counts = manifest.config, manifest.counts
    tools = {}
    for tool in config.method.tools:
        method = config.method.of(tool)
        numbers: dict[str, object] = {"tau_s": method.tau_s, "k": method.k, "m": method.m}
        numbers["tau_f"] = method.tau_f
        if counts is not None and tool in counts.tools:
            sums = counts.tools[tool]
            numbers |= {"draws": sums.draws, "scored calls": sums.scored, "kept calls": sums.kept}
        tools[tool] = numbers
    finished = manifest.sessions[-1].finished if manifest.sessions else None
    return Card(
        title="Texts with scored tool calls",
        facts={
            "texts": counts.texts if counts else 0,
            "scored calls": counts.calls if counts else 0,
            "model": config.model.path,
            "corpus": f"{manifest.corpus.files} files, digest {manifest.corpus.digest}",
            "slice": config.corpus.slice or "none",
            "seed": config.method.seed,
        },
        tools=tools,
        versions=manifest.versions,
        created=finished or "",
        data_files=f"{ROWS}/*.parquet",
    )
