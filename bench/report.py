"""The report of a run: how long it takes to make, its size, and when the page can be used.

    python -m bench.report [FOLDER] [--rounds 3]

FOLDER is runs/demo by default. A headless Chromium opens the page and says how many milliseconds after the
start of its navigation the last script had run, with every chart drawn. Out: a line for each figure. The
counts at thresholds are compared with merge's in tests/pipeline/report/html/test_page.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.report.html.document import write_report
from pipeline.report.html.sources import collect

_READY = re.compile(r'<html[^>]*\bdata-ready="(\d+)"')


def ready_ms(browser: str, page: Path, profile: Path) -> int:
    """Milliseconds from the start of the navigation until the page can be used."""
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    )
    flags += ("--disable-background-networking", f"--user-data-dir={profile}")
    command = [browser, *flags, "--dump-dom", page.absolute().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = _READY.search(done.stdout)
    if found is None:
        raise SystemExit(f"{page}: the page did not become ready")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        started = time.perf_counter()
        write_report(collect(arguments.folder), page)
        print(f"made in {time.perf_counter() - started:.1f} s, {page.stat().st_size / 1e6:.2f} MB")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            sys.exit("no Chromium is installed: the page was not opened")
        times = [ready_ms(browser, page, Path(scratch) / f"profile{n}") for n in range(arguments.rounds)]
        print(
            f"ready after {statistics.median(times):.0f} ms (median of {arguments.rounds}: {sorted(times)})"
        )


if __name__ == "__main__":
    main()
