"""The commands in README, docs and the cluster's scripts can be parsed; tests that pages name exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.submit import ROOT
from pipeline.cli.main import main, parse

pytestmark = pytest.mark.unit

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cluster").rglob("*.sh"))]
COMMAND = re.compile(r"\s*(?:RAY_\w+=\S+ )*(?:python -m pipeline|toolformer) (\w+ .*?)(?:\s+#.*|&|>.*)?$")


def commands(page: Path) -> Iterator[str]:
    """Commands that have a line of their own, without the program; those with an ellipsis are skipped."""
    text = re.sub(r"\s*\\\n\s*", " ", page.read_text())
    for line in text.splitlines():
        match = COMMAND.match(line)
        if match and "…" not in match[1]:
            yield match[1]


# test_own_tool.py runs the commands of its page, which need the files of its page.
COMMANDS = [
    (page.name, command) for page in PAGES if page.name != "own_tool.md" for command in commands(page)
]

RUN_FILE = (ROOT / "docs" / "run_file.md").read_text(encoding="utf-8")


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page}: {command[:41]}" for page, command in COMMANDS]
)
def test_a_command_can_be_parsed(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    run_file = tmp_path / "run.yaml"  # the file that docs/run_file.md shows
    run_file.write_text(re.findall(r"```yaml\n(.*?)```", RUN_FILE, re.DOTALL)[0], encoding="utf-8")
    command = command.replace("run.yaml", str(run_file))
    command = command.replace('"$tools"', "cluster/tools.toml").replace('"$recipe"', "paper")
    command = re.sub(r'"\$(gpus|workers|micro_batch|replicas)"|"\$\{TEXTS:-300\}"', "1", command)
    name, *options = shlex.split(re.sub(r"\$\{?(\w+)(\[@\])?\}?", r"\1", command))
    if name in ("doctor", "completion"):  # their options are no fields
        assert main([name, "--help"]) == 0
    else:
        parse(name, options)


def test_every_test_that_a_page_names_exists() -> None:
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    defined = set(re.findall(r"def (test_\w+)", "\n".join(sources.values())))
    defined |= {path.stem for path in sources}
    pages = [*PAGES, *(ROOT / "docs" / "decisions").glob("*.md")]
    named = [(page.name, name) for page in pages for name in re.findall(r"`(test_\w+)`", page.read_text())]
    assert len(named) > 15
    assert not [(page, name) for page, name in named if name not in defined]
