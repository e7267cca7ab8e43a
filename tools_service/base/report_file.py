"""report.html, the page that a command writes beside its results, and how it is told from other pages.

A report changes nothing of what an output is: ownership.py takes it for our own file, and fingerprint.py
leaves it out of the state of a folder. A page of somebody else with that name is neither.
"""

from __future__ import annotations

from pathlib import Path

REPORT = "report.html"
MARK = '<meta name="generator" content="toolformer report">'
_MARK_WITHIN = 2_000  # characters from the start


def is_report(path: Path) -> bool:
    """Whether `path` is a page of ours; False if it cannot be read."""
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(_MARK_WITHIN)
    except OSError:
        return False
