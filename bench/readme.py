"""Run README's examples against a finished demo, compare what they print, and make its pictures.

    python -m bench.readme            compare; exit 1 if something differs
    python -m bench.readme --write    make the pictures in docs/images anew

An example is a line of an indented block that begins with `$ `; the lines after it, up to a blank line or
the next command, are what it prints on standard output. README also has the demo's verdict, word by word.
In: README.md, docs/images, runs/demo; Chromium for the picture of the report. Needs no network.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text as Styled

from pipeline.cli.recipes import demo
from pipeline.evaluation.results import Evaluation
from pipeline.report.demo_summary import prompts_to_try, score_table, verdict

README = Path("README.md")
IMAGES = Path("docs/images")


@dataclass(frozen=True, slots=True)
class Example:
    """A command and what it prints."""

    command: str
    output: str


def examples(text: str) -> list[Example]:
    """The examples of a page, in order."""
    found: list[Example] = []
    lines: list[str] | None = None
    for line in [*text.splitlines(), ""]:
        is_command = line.startswith("    $ ")
        if lines is not None and (is_command or not line.strip()):
            found.append(Example(lines[0], "\n".join(lines[1:])))
            lines = None
        if is_command:
            lines = [line[6:]]
        elif lines is not None:
            lines.append(line[4:])
    return found


def differences(example: Example, folder: Path) -> list[str]:
    """How the output of the command in `folder` differs from that of the page; empty if it does not."""
    command = re.sub(r"^python ", f"{sys.executable} ", example.command)
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=600, check=False
    )
    printed = ended.stdout.rstrip("\n") + (f"\nexit code {ended.returncode}" if ended.returncode else "")
    return list(
        difflib.unified_diff(
            example.output.splitlines(), printed.splitlines(), "README", "here", lineterm="", n=0
        )
    )


def picture(evaluation: Evaluation, answers: list[str]) -> str:
    """The end of the demo as an SVG without references to other files."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(
        Styled("$ make demo\n…\n", style="bold"), score_table(evaluation), sep="\n", highlight=False
    )
    console.print(Styled(verdict(evaluation), style="bold"), highlight=False)
    for answer in answers:
        call = re.search(r" \[\w+\(.*?\) -> .*?\]", answer)
        styled = Styled(f"\n{answer}")
        if call:
            styled.stylize("bold green", call.start() + 1, call.end() + 1)
        console.print(styled, highlight=False)
    svg = console.export_svg(title="make demo")
    return re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)


def picture_of_report(page: Path, image: Path) -> bool:
    """Photograph the top of a report in a browser without a window; False if there is no browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or not page.exists():
        return False
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1130"]
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *options, f"--user-data-dir={profile}", "--virtual-time-budget=3000"]
        command += [f"--screenshot={image.absolute()}", page.absolute().as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make the pictures in docs/images anew")
    arguments = parser.parse_args()
    evaluate = demo().evaluate
    evaluation = Evaluation.read(evaluate.output)
    if not evaluation.models:
        print(f"{evaluate.output}: missing; `make demo` makes it", file=sys.stderr)
        return 2
    shown = [q.prompt + answer for q, answer in prompts_to_try(evaluate) if q.tool is not None]
    drawn = picture(evaluation, shown[:2])
    if arguments.write:
        (IMAGES / "demo.svg").write_text(drawn, encoding="utf-8")
        page = evaluate.output.with_name("report.html")
        if not picture_of_report(page, IMAGES / "report.png"):
            print(f"{IMAGES / 'report.png'} is as it was: it needs {page} and Chromium", file=sys.stderr)
        print(f"wrote {IMAGES}")
        return 0
    text = README.read_text(encoding="utf-8")
    found = []
    if verdict(evaluation) not in " ".join(text.split()):
        found.append(f"{README} does not say: {verdict(evaluation)}")
    if drawn != (IMAGES / "demo.svg").read_text(encoding="utf-8"):
        found.append(f"{IMAGES / 'demo.svg'} shows another run; --write draws it anew")
    for example in examples(text):
        changed = differences(example, Path())
        print(f"{'differs' if changed else 'same'}: {example.command}")
        found += changed
    print("\n".join(found) if found else "README shows what this demo prints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
