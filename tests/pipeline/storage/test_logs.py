"""The JSON lines of a log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pipeline.engine.errors import NonFiniteError
from pipeline.storage.logs import LOGS, last_problem, logged

pytestmark = pytest.mark.unit


def test_the_log_has_text_tool_position_and_error(tmp_path: Path) -> None:
    logger = logging.getLogger("pipeline.tests")
    with logged(tmp_path):
        assert not (tmp_path / LOGS).exists(), "made with the first line"
        logger.warning("%s lost %d calls", "MT", 3, extra={"tool": "MT", "text_id": 2**62, "calls": 3})
        try:
            raise NonFiniteError("the loss", 7, "QA", 4)
        except NonFiniteError:
            logger.exception("the run stops\nhere")
    logger.warning("afterwards")
    [file] = (tmp_path / LOGS).iterdir()
    first, second = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    assert first | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "pipeline.tests",
        "message": "MT lost 3 calls",
        "tool": "MT",
        "text_id": 2**62,
        "calls": 3,
    }
    assert (second["text_id"], second["tool"], second["position"]) == (7, "QA", 4)
    assert second["error"].startswith("NonFiniteError: text 7, QA, position 4")
    assert "Traceback" in second["traceback"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / LOGS).write_text("a file where the folder should be")
    with logged(tmp_path):
        logging.getLogger("pipeline.tests").warning("said elsewhere")


def test_the_last_problem_of_all_processes(tmp_path: Path) -> None:
    assert last_problem(tmp_path) is None
    with logged(tmp_path):
        logging.getLogger("pipeline.tests").warning("first")
        logging.getLogger("pipeline.tests").error("second\nline")
        logging.getLogger("pipeline.tests").info("fine")
    found = last_problem(tmp_path)
    assert found is not None
    assert found.endswith(" second line")
    (tmp_path / LOGS / "other-1.jsonl").write_text(
        '{"time": "9", "level": "warning", "message": "last"}\n[]\n{'
    )
    assert last_problem(tmp_path) == "9 last"
