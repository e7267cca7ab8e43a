"""Writes the rows of texts that no tool is tried on where they are read, so that no model waits for them.

In: texts in the order of the corpus. Out: those that a tool is tried on, and rows of ANNOTATION_SCHEMA for
the others, equal to those that an annotating actor writes. It is used where no tool takes every text: then
the batches of an actor hold texts that it works on (docs/decisions/0052).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.annotation.metrics import reason_class
from pipeline.base.config import MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Text
from pipeline.method.selection import SelectionError, unselected_annotation
from pipeline.storage.row_files import write_rows
from tools_service.base.files import writing
from tools_service.contract.spec import Select

_ROWS_PER_FILE = 1_024


def some_texts_are_unselected(method: MethodConfig) -> bool:
    """Whether no tool takes every text, and every rule may run in a read task.

    If a tool takes every text, selecting twice would be in vain. A user's function may kill its process,
    which only the actors survive.
    """
    return all(_may_run_here(method.of(tool).select) for tool in method.tools)


def _may_run_here(select: Select) -> bool:
    own_function = select.rule.startswith("pipeline.")
    return select.pattern is not None or select.rule == "dated" or own_function


@dataclass(slots=True)
class UnselectedRows:
    """The rows of one read task. A copy for each task is made by pickling."""

    method: MethodConfig
    rows: Path
    progress: Any
    _pending: list[Annotation] = field(default_factory=list)

    def take(self, texts: Sequence[Text]) -> list[Text]:
        """Keep the rows of unselected and skipped texts; return the others. OutputError if none can be
        written."""
        selected = []
        for text in texts:
            annotation = self._annotation(text)
            if annotation is None:
                selected.append(text)
            else:
                self._pending.append(annotation)
        if len(self._pending) >= _ROWS_PER_FILE:
            self.write()
        return selected

    def write(self) -> None:
        """Write the rows that are kept. A repeated task keeps the same ones, and so replaces its files."""
        if not self._pending:
            return
        table = pa.Table.from_pylist([item.to_row() for item in self._pending], schema=ANNOTATION_SCHEMA)
        with writing(self.rows):
            write_rows(self.rows, table)
        texts = Counter((item.status, reason_class(item.reason or "")) for item in self._pending)
        self.progress.unselected.remote(texts)
        self._pending = []

    def _annotation(self, text: Text) -> Annotation | None:
        try:
            return unselected_annotation(text, self.method)
        except SelectionError:
            return None  # the actor meets it again and turns it into a failed row
