"""docs/own_tool.md, followed word for word in an empty folder with the wheel installed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.test_wheel import commands, wheel  # noqa: F401 - fixtures
from tools_service.syntax.calls import Malformed, parse_call

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_tool.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
MOST_LINES = 25


def files() -> dict[str, str]:
    """The files of the page: each block that is no command, under the last name of a file before it."""
    found = {}
    for match in BLOCK.finditer(PAGE):
        if match[1] != "bash":
            [*_, name] = re.findall(r"`(\w+\.(?:py|toml|txt))`", PAGE[: match.start()])
            found[name] = match[2]
    return found


def shell() -> list[str]:
    """The commands of the page, in their order."""
    return [line for kind, block in BLOCK.findall(PAGE) if kind == "bash" for line in block.splitlines()]


@pytest.mark.unit
def test_the_tool_takes_few_lines() -> None:
    written = files()
    assert set(written) == {"units.py", "tools.toml", "examples.txt", "pages.py"}
    lines = [
        line for name in ("units.py", "tools.toml", "examples.txt") for line in written[name].splitlines()
    ]
    assert len(lines) <= MOST_LINES


@pytest.mark.ray
@pytest.mark.timeout(540)
def test_the_page_makes_a_tool_whose_calls_are_kept(commands: Path, tmp_path: Path) -> None:  # noqa: F811
    home, folder = tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    folder.mkdir()
    (home / "toolformer-on-ray").symlink_to(ROOT)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HOME": str(home), "PATH": f"{commands}{os.pathsep}{environment['PATH']}"}
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
    printed = {}
    for command in shell():
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        printed[command.split()[1] if command.startswith("toolformer") else command] = done.stdout
    assert printed["call"] == "135\n"
    assert "UnitCalculator with demo/models/annotator" in printed["try"]
    rows = pq.read_table(folder / "runs/units/augmented/rows").to_pylist()
    texts = [row["text"] for row in rows]
    assert printed[shell()[-1]].splitlines() == texts
    right = 0
    for text in texts:
        for written in re.findall(r"\[(UnitCalculator\([^]]*\)) -> ", text):
            argument = parse_call(f"{written}]", "UnitCalculator")
            assert not isinstance(argument, Malformed)
            hours, minutes = map(int, argument.split(" + "))
            right += f"{argument}) -> {60 * hours + minutes}] {60 * hours + minutes}" in text
    assert right >= 5, "few calls stand before their own result"
    [example] = re.findall(r"^> (.*)$", PAGE, re.MULTILINE)
    assert example in texts
