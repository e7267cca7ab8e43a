"""`python -m tools_service`: what goes to standard output, and with which code it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools_service.commands import main

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_a_result_is_printed_and_the_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "Calculator", "27 + 4 * 2"]) == 0
    assert capsys.readouterr().out == "35\n"


def test_output_that_nobody_reads_or_can_show_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)

        def show(arguments: object) -> int:
            print("Café")
            return 0

        monkeypatch.setattr("tools_service.commands.call", show)
        assert main(["call", "Calculator", "1"]) == 0

        def closed(arguments: object) -> int:
            raise BrokenPipeError

        monkeypatch.setattr("tools_service.commands.call", closed)
        assert main(["call", "Calculator", "1"]) == 1
        monkeypatch.undo()


def test_the_calendar_takes_a_date_or_todays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "Calendar", "", "--date", "2023-01-30"]) == 0
    assert main(["call", "Calendar", ""]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Today is Monday, January 30, 2023."
    assert second.startswith("Today is ")


def test_a_reason_goes_to_standard_error_and_the_code_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "Calculator", "9**9**9"]) == 1
    assert capsys.readouterr() == ("", "no result: number missing\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["call", "QA", "who?", "--wikisearch.index", "nowhere"], "--wikisearch.source: QA"),
        (["call", "WikiSearch", "x", "--wikisearch.index", "nowhere"], "--wikisearch.source"),
        (["call", "Calculator"], "--json"),
        (["call", "Calculator", "1", "--json"], "--json"),
        (["index"], "--source"),
        (["serve", "--tools", "MT", "--mt.model", "./nowhere"], "--mt.model: ./nowhere is not a folder"),
    ],
)
def test_a_wrong_command_line_is_explained_with_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_json_answers_every_line_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        b'"1+1"',
        b'"2*"',
        b"2+2",
        b"{",
        b"",
        b'"\\ud800"',
        b"\xff",
        b"[" * 100_000,
        json.dumps("9" * 10**6).encode(),
    ]
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["call", "Calculator", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == {"result": "2", "reason": None}
    assert [one["result"] for one in answers[1:]] == [None] * 8
    assert [one["reason"] for one in answers[1:]] == [
        "number missing",
        *["not a JSON string"] * 3,
        "not arithmetic",
        *["not a JSON string"] * 2,
        "expression too long",
    ]


def test_index_then_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wiki.jsonl").write_text('{"title": "Otter", "text": "An otter [animal] swims."}\n')
    index = str(tmp_path / "index")
    assert main(["index", "--source", str(tmp_path / "wiki.jsonl"), "--index", index]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == 1
    assert main(["call", "WikiSearch", "otters", "--wikisearch.index", index]) == 0
    assert capsys.readouterr().out == "Otter > An otter (animal) swims.\n"


def test_a_tool_of_an_installed_package_is_there_without_a_file(tmp_path: Path) -> None:
    """A real entry point: the metadata of a package and its module on the path."""
    metadata = tmp_path / "mylab_tools-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab-tools\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[toolformer.tools]\nunits = mylab_tools:UNITS\nbroken = mylab_tools:NOTHING\n"
    )
    (tmp_path / "mylab_tools.py").write_text(
        "from pipeline.method.selection import Selection, TextToSelect\n"  # as a rule of its own does
        "from tools_service.config import WikiSearchConfig\n"
        "from tools_service.contract.spec import ToolSpec\n"
        "def convert(quantity: str) -> str:\n    return quantity.replace('km', 'miles')\n"
        "UNITS = ToolSpec(name='Units', implementation='mylab_tools:convert', k=3)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *argv],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = run("tools_service", "call", "Units", "5 km")
    assert (done.returncode, done.stdout) == (0, "5 miles\n")
    assert "entry point broken = mylab_tools:NOTHING is left out" in done.stderr
    shown = run("pipeline", "annotate", "--help-all").stdout
    assert "TOOL stands for a tool: " in shown
    assert ", units" in shown.partition("TOOL stands for a tool: ")[2]
    unused = run("pipeline", "annotate", "--corpus", "nowhere", "--tools", "Unit")
    assert unused.returncode == 2
    assert "no tool is called Unit; did you mean Units? there are QA, " in unused.stderr
