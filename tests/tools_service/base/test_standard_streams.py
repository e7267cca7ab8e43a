"""What a shell may do to the standard streams of a command: one line, an exit code, no traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools_service.base.standard_streams import json_must_be_ascii

pytestmark = pytest.mark.unit

CALL = f"{sys.executable} -m tools_service call Calculator"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{CALL} --json <&-", 2, "standard input is closed"),
        (f"{sys.executable} -m pipeline generate <&-", 2, "standard input is closed"),
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
