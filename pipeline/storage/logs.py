"""A run's log as JSON lines: one file for each process that has something to say, in OUTPUT/logs.

In: what the packages of this project log. Out: ``logs/HOST-PID.jsonl`` with time (ISO 8601, UTC), level,
logger and message, and where they are known text_id, tool, position, error, calls, traceback. A file appears
with its first line; a process appends only to its own, so network file systems do no harm. Ray's own logs,
which have the same lines as prose, go with their node.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

LOGS = "logs"
_PACKAGES = ("pipeline", "tools_service")
_FIELDS = ("text_id", "tool", "position", "error", "calls")


class JsonLines(logging.Formatter):
    """A record as one JSON object; its fields are given as `extra`, or are those of the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
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
    """From now on, write what this process logs to a file of its own in `folder`/logs."""
    handler = _File(folder / LOGS / f"{socket.gethostname()}-{os.getpid()}.jsonl")
    for package in _PACKAGES:
        logging.getLogger(package).addHandler(handler)
    return handler


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """The same for the length of the block."""
    handler = log_into(folder)
    try:
        yield
    finally:
        for package in _PACKAGES:
            logging.getLogger(package).removeHandler(handler)
        handler.close()


class _File(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        """Where the line cannot be written (a full disk), the record is in Ray's log all the same."""
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:
            return
