"""What a shell may do to the standard streams of a command: one line, an exit code, no traceback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools_service.base.files import OutputError
from tools_service.base.standard_streams import json_must_be_ascii, redirected_output, run_command

pytestmark = pytest.mark.unit

CALL = f"{sys.executable} -m tools_service call Calculator"
GENERATE = f"{sys.executable} -m pipeline generate --model demo/models/annotator"


def test_a_command_that_sigterm_ends_has_the_code_of_shells() -> None:
    def end() -> int:
        raise SystemExit(signal.SIGTERM)  # as Ray's handler does

    assert run_command(end, "a command") == 143


@pytest.mark.parametrize("package", ["pipeline", "tools_service"])
def test_a_python_without_the_packages_is_one_sentence(package: str) -> None:
    command = [sys.executable, "-S", "-m", package, "call"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "is not installed for" in ended.stderr
    assert "make setup" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{CALL} --json <&-", 2, "standard input is closed"),
        (f"{GENERATE} <&-", 2, "standard input is closed"),
        (f"{CALL} 1+1 >&-", 0, ""),
        (f"{CALL} 1+1 >/dev/full", 1, "cannot write: "),
        (f"yes '\"1+1\"' | head -n 5000 | {CALL} --json >/dev/full", 1, "cannot write: "),
        (f"set -o pipefail; yes '\"1+1\"' | head -n 5000 | {CALL} --json | head -n 1 >/dev/null", 1, ""),
    ],
)
def test_closed_and_full_streams(command: str, code: int, said: str) -> None:
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=Path.cwd(), env=os.environ
    )
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
    assert ended.stderr.count("\n") == bool(said)


@pytest.mark.parametrize(
    ("encoding", "is_ascii"), [("utf-8", False), ("UTF8", False), ("ascii", True), ("latin-1", True)]
)
def test_json_stays_json_in_every_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, is_ascii: bool
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, "backslashreplace"))
    assert json_must_be_ascii() == is_ascii
    print(json.dumps("é 🎉", ensure_ascii=json_must_be_ascii()), flush=True)
    assert json.loads(written.getvalue()) == "é 🎉"


NOISE = """
import os, subprocess, sys
from pathlib import Path
from tools_service.base.standard_streams import redirected_output
print("before")
with redirected_output(Path(sys.argv[1])) as shown:
    print("noise")
    os.write(2, b"noise of a library\\n")
    subprocess.run(["echo", "noise of a child"], check=True)
    if shown is not None:
        print("seen", file=shown, flush=True)
print("after")
if sys.stderr is not None:
    print("and after", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("redirection", "out", "err"),
    [
        ("", "before\nafter\n", "seen\nand after\n"),
        ("2>&-", "before\nafter\n", ""),
        (">&-", "", "seen\nand after\n"),
    ],
)
def test_noise_goes_to_the_log_and_the_streams_come_back(
    redirection: str, out: str, err: str, tmp_path: Path
) -> None:
    log = tmp_path / "runs" / "log"
    command = f'"$0" -c "$1" {log} {redirection}'
    for _ in range(2):
        ended = subprocess.run(
            ["bash", "-c", command, sys.executable, NOISE], capture_output=True, text=True, timeout=60
        )
        assert (ended.returncode, ended.stdout) == (0, out), ended.stderr
        assert ended.stderr == err
    lines = log.read_text().splitlines()
    assert lines.count("noise of a library") == lines.count("noise of a child") == 2
    assert lines.count("noise") == (0 if redirection == ">&-" else 2)  # Python has no stdout then


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/log"), redirected_output(tmp_path / "file" / "log"):
        pass
