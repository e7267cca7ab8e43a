"""Tables and cells in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    """`text` as code in a cell of a table."""
    text = text.replace("|", "&#124;").replace("<", "&lt;")
    return f"<code>{text}</code>" if "`" in text or "&" in text else f"`{text}`"


def prose(text: str | None) -> str:
    """Plain text, such as a docstring, for a cell: a mark of Markdown or HTML in it is only a letter."""
    text = " ".join((text or "").split()).replace("``", "`")
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a single mark
        return _escape(text)
    return "".join(code(part) if index % 2 else _escape(part) for index, part in enumerate(parts))


def _escape(text: str) -> str:
    for mark in "\\*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;")
