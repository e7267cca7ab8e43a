"""One HTML file that needs nothing else: the page of assets/ with a report as JSON inside.

In: a `Report`. Out: a file that opens from a disk. A page that this project did not write is never
replaced. Nothing is measured here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.report.html.data import Report
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, writing
from tools_service.base.report_file import is_report

ASSETS = Path(__file__).parent / "assets"


def render(report: Report) -> str:
    """The page as one string: styles, scripts and data inline."""
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    # "<" ends no script element in JSON that has none of them.
    data = json.dumps(report.model_dump(mode="json"), ensure_ascii=False).replace("<", "\\u003c")
    parts = {"uplot.css": "uplot/uPlot.min.css", "report.css": "report.css"}
    parts |= {"uplot.js": "uplot/uPlot.iife.min.js", "report.js": "report.js"}
    for name, file in parts.items():
        page = page.replace(f"/*{name}*/", (ASSETS / file).read_text(encoding="utf-8"))
    return page.replace("/*data*/", data)


def write_report(report: Report, path: Path) -> None:
    """Write the page to `path`. ConfigurationError if a file stands there that is no report."""
    require_report(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, render(report))


def require_report(path: Path) -> None:
    """ConfigurationError if `path` exists and is not a report of this project."""
    if os.path.lexists(path) and not is_report(path):
        raise ConfigurationError(f"output: {path} exists and is not a report; name another file")
