"""One HTML file that needs nothing else: the page of assets/ with a report as JSON inside.

In: a `Report`. Out: a file that opens from a disk. A page that this project did not write is never
replaced. Nothing is measured here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from pipeline.report.html.data import Report
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, writing
from tools_service.base.report_file import is_report

ASSETS = Path(__file__).parent / "assets"
_STYLES = ("uplot/uPlot.min.css", "report.css")
_SCRIPTS = (
    "uplot/uPlot.iife.min.js",
    "dom.js",
    "charts.js",
    "merging.js",
    "funnel.js",
    "gain.js",
    "probability.js",
    "value.js",
    "contexts.js",
    "results.js",
    "page.js",
)  # in the order in which they need each other


def render(report: Report) -> str:
    """The page as one string: styles, scripts and data inline."""
    styles = _joined(_STYLES)
    scripts = _joined(_SCRIPTS)
    parts = {
        "policy": _policy(scripts, styles),
        "styles": styles,
        "scripts": scripts,
        "data": _data(report),
    }
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"/\*(policy|styles|scripts|data)\*/", lambda mark: parts[mark[1]], page)


def _data(report: Report) -> str:
    """The report as JSON that ends no script element. Numbers that are not finite become null."""
    data = json.dumps(_finite(report.model_dump(mode="json")), ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair, in a file's name for example, is an escape in JSON and nothing in UTF-8.
    return data.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_finite(entry) for entry in value]
        case dict():
            return {name: _finite(entry) for name, entry in value.items()}
    return value


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((ASSETS / name).read_text(encoding="utf-8").strip() for name in names)


def _policy(scripts: str, styles: str) -> str:
    """Allows the page's own scripts and styles, by their digests, and nothing from elsewhere."""
    digests = [
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (scripts, styles)
    ]
    script, style = (f"'sha256-{digest}'" for digest in digests)
    allowed = f"script-src {script}; style-src {style}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


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
