"""Hooks of mkdocs: the pages of the reference, and links that lead out of docs/.

The site is read without the repository beside it, so a link to a file outside of docs/ becomes the name of
the file. In docs/ the links stay: they work where the repository is looked at.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs reads this file by its path

from reference import commands, configuration, errors, metrics, output_fields, reasons

_OUTSIDE = re.compile(r"\[([^\[\]]+)\]\(((?:\.\./)+[^()\s]+)\)")


def pages() -> dict[str, str]:
    """Every page of the reference, as Markdown by its path in the site."""
    made = {
        "commands": commands.index(),
        "configuration": configuration.page(),
        "reasons": reasons.page(),
        "output_fields": output_fields.page(),
        "metrics": metrics.page(),
        "errors": errors.page(),
    }
    made |= {f"commands/{name}": text for name, text in commands.pages().items()}
    return {f"reference/{name}.md": text for name, text in made.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the commands and of the decisions into the navigation, below their lists."""
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "decisions").glob("0*.md"))
    below = {
        "Commands": [f"reference/commands/{name}.md" for name in commands.pages()],
        "Decisions": [f"decisions/{name}" for name in decisions],
    }
    _extend(config.nav, below)
    return config


def _extend(entries: Any, below: dict[str, list[str]]) -> None:
    for entry in entries or []:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                value.extend(below.get(title, []))
                _extend(value, below)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Replace links out of docs/ by the names of the files."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = (folder / target.partition("#")[0]).resolve()
        if path.is_relative_to(config.docs_dir) or not path.is_relative_to(Path(config.docs_dir).parent):
            return match[0]
        name = path.relative_to(Path(config.docs_dir).parent)
        return f"`{name}`" if text.strip("`") == path.name else f"{text} (`{name}`)"

    return _OUTSIDE.sub(outside, markdown)
