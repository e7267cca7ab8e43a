"""The commands that README and docs name can be given as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.submit import ROOT
from pipeline.cli.main import parse

pytestmark = pytest.mark.unit

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cluster").rglob("*.sh"))]


def commands(page: Path) -> Iterator[str]:
    """Those on lines of their own, or after a prompt of a script; what is left out (…) is not given."""
    whole = re.sub(r"\s*\\\n\s*", " ", page.read_text())
    for line in whole.splitlines():
        found = re.match(r"\s*(?:RAY_\w+=\S+ )*(python -m pipeline \w+ .*?)(?:\s+#.*|&|>.*)?$", line)
        if found and "…" not in found[1]:
            yield found[1]


NAMED = [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_commands() -> None:
    assert len(NAMED) > 12


@pytest.mark.parametrize(("page", "command"), NAMED, ids=[f"{page}: {line[19:60]}" for page, line in NAMED])
def test_a_command_can_be_parsed(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = command.replace('"$tools"', "cluster/tools.toml")
    _, _, _, name, *rest = shlex.split(re.sub(r"\$\{?(\w+)(\[@\])?\}?", r"\1", given))
    parse(name, rest)
