"""progress.json: how many texts a run of annotate expects, for `status` in another process.

Written while the run goes on and removed when it has finished. The rows, not this file, say what is done.
"""

from __future__ import annotations

from pathlib import Path

from tools_service.base.files import atomic_write_json, read_model
from tools_service.base.settings import Frozen

PROGRESS = "progress.json"


class ExpectedTexts(Frozen):
    """Texts of the corpus; until every file is read, an estimate from the files that are."""

    texts: int
    is_estimate: bool

    def write(self, folder: Path) -> None:
        """Write it into an annotation folder. Raises OutputError."""
        atomic_write_json(folder / PROGRESS, self.model_dump())


def read_expected(folder: Path) -> ExpectedTexts | None:
    """What the run expects; None if it does not say."""
    try:
        return read_model(folder / PROGRESS, ExpectedTexts)
    except (OSError, ValueError):
        return None
