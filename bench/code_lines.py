"""How the code is laid out: lines, tokens per code line, comments and long lines by package.

    python -m bench.code_lines [FOLDER ...]

A code line has at least one token; comments, blank lines and docstrings are not counted. Comment
lines hold nothing but a comment. Figures for decision 0020; runs in a second and writes nothing.
"""

from __future__ import annotations

import argparse
import io
import tokenize
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

LONG = 100  # characters
_LAYOUT = frozenset(
    {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
)


@dataclass(slots=True)
class Counts:
    """Sums over files."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    tokens: int = 0
    comment_lines: int = 0
    long_lines: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of other files."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def count(source: str) -> Counts:
    """The counts of one file."""
    lines = source.splitlines()
    tokens_by_line: Counter[int] = Counter()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += lines[token.start[0] - 1].lstrip().startswith("#")
        elif token.type not in _LAYOUT and not token.line.lstrip().startswith('"""'):
            tokens_by_line[token.start[0]] += 1
    return Counts(
        files=1,
        lines=len(lines),
        code_lines=len(tokens_by_line),
        tokens=tokens_by_line.total(),
        comment_lines=comments,
        long_lines=sum(len(line) > LONG for line in lines),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Lines, tokens per code line, comments and long lines.")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("pipeline"), Path("tools_service")])
    table = Table("folder", "files", "lines", "tokens per code line", "comment lines", f"lines over {LONG}")
    total = Counts()
    for folder in parser.parse_args().folders:
        packages = sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file())
        groups = {str(package): sorted(package.rglob("*.py")) for package in packages}
        groups[f"{folder}/*.py"] = sorted(folder.glob("*.py"))
        for name, files in groups.items():
            counts = Counts()
            for file in files:
                counts.add(count(file.read_text(encoding="utf-8")))
            total.add(counts)
            table.add_row(name, *cells(counts))
    table.add_row("all", *cells(total))
    Console(width=120).print(table)


def cells(counts: Counts) -> list[str]:
    """A row of the table."""
    return [
        str(counts.files),
        str(counts.lines),
        f"{counts.tokens / max(1, counts.code_lines):.2f}",
        f"{counts.comment_lines / max(1, counts.lines):.1%}",
        f"{counts.long_lines / max(1, counts.lines):.1%}",
    ]


if __name__ == "__main__":
    main()
