"""The command `doctor`: its lines, its JSON, its exit code, and that it needs no package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.doctor import run as doctor_run
from pipeline.cli.doctor.check import Check

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]
GOOD = Check("disk", "ok", "9 GiB")
WARNING = Check("home", "warning", "none", "set HOME")
PROBLEM = Check("memory", "problem", "1 MiB", "end other programs")


def with_checks(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def run_checks(*, network: bool = False) -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(doctor_run, "run_checks", run_checks)


@pytest.mark.parametrize(("checks", "code"), [((GOOD, WARNING), 0), ((GOOD, PROBLEM), 2)])
def test_a_line_for_each_and_exit_code_2_for_a_problem(
    checks: tuple[Check, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_checks(monkeypatch, *checks)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(checks) + 1
    assert shown[0] == "ok       disk              9 GiB"
    assert shown[1].endswith(f"{checks[1].found}: {checks[1].advice}")
    assert cli.main(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["checks"][0] == {"name": "disk", "state": "ok", "found": "9 GiB", "advice": ""}
    assert found["problems"] == (code == 2)


def test_this_machine_is_checked_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*arguments: object, **options: object) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr(doctor_run.urllib.request, "urlopen", urlopen)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    checks = list(doctor_run.run_checks())
    assert len({check.name for check in checks}) == len(checks) == 16
    assert not [check for check in checks if "could not be checked" in check.found]


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> Check:
        raise OSError("strange")

    monkeypatch.setattr(doctor_run.machine, "disk", fails)
    checks = {check.name: check for check in doctor_run.run_checks()}
    assert checks["disk"].found == "could not be checked: OSError: strange"
    assert checks["disk"].state == "warning"
    assert len(checks) == 16


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "--jason"])
    assert caught.value.code == 2
    assert "--jason" in capsys.readouterr().err


def test_an_address_that_does_not_answer() -> None:
    assert doctor_run.reach("http://127.0.0.1:9/") is not None


@pytest.mark.parametrize(
    ("command", "says"),
    [("doctor", "problem  packages          missing: "), ("merge", "`python -m pipeline doctor` lists what")],
)
def test_without_packages_doctor_works_and_a_command_names_the_first(command: str, says: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys._base_executable, "-S", "-m", "pipeline", command],  # type: ignore[attr-defined]
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
