"""The log of a run as JSON lines in OUTPUT/logs, one file for each process that logs something.

In: the log records of this project's packages. Out: ``logs/HOST-PID.jsonl`` with time (ISO 8601, UTC),
level, logger and message, and where known text_id, tool, position, error, calls and traceback. A process
appends to its own file only, which is safe on network file systems. Ray's logs go with their node.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tools_service.base.printable import printable

LOGS = "logs"
PACKAGES = ("pipeline", "tools_service")
_END_BYTES = 2**16  # of a log that are read again
_MAX_SHOWN = 300  # characters
_FIELDS = ("text_id", "tool", "position", "error", "calls")


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object; its fields come from `extra` or from the exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = f"{type(error).__name__}: {error}"
        for name in _FIELDS:
            value = getattr(record, name, getattr(error, name, None))
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_into(folder: Path) -> logging.Handler:
    """Write the log records of this process to its own file in `folder`/logs from now on."""
    path = folder / LOGS / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    handler = _JsonLinesHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(JsonLines())
    for package in PACKAGES:
        logging.getLogger(package).addHandler(handler)
    return handler


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Call `log_into` for the length of a block."""
    handler = log_into(folder)
    try:
        yield
    finally:
        for package in PACKAGES:
            logging.getLogger(package).removeHandler(handler)
        handler.close()


def last_problem(folder: Path) -> str | None:
    """The latest warning or error in `folder`/logs, with its time; None without one."""
    latest: tuple[str, str] | None = None
    for path in (folder / LOGS).glob("*.jsonl"):
        for line in reversed(_end_of(path)):
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                record = json.loads(line)
                if record["level"] not in ("debug", "info"):
                    error = f" ({record['error']})" if record.get("error") else ""
                    found = str(record["time"]), f"{record['message']}{error}"
                    latest = max(latest or found, found)
                    break
    return latest and f"{latest[0]} {printable(' '.join(latest[1].split()), _MAX_SHOWN)}"


def _end_of(path: Path) -> list[str]:
    """The last complete lines of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            return file.read().decode(errors="replace").split("\n")[:-1]
    except OSError:
        return []


class _JsonLinesHandler(logging.FileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        """Ignore a failed write (full disk): Ray's log has the record, too."""
        with suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
