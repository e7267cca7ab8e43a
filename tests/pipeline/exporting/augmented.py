"""A small C*, merged from annotations made here."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.augmentation.merge import merge
from pipeline.base.config import MergeConfig
from pipeline.storage.row_files import ROWS
from tests.pipeline.augmentation.test_merge import annotated, annotations, call

PLAIN = "The nurse saw 18 of 40 patients, 45%."
TEXT = "[QA(who?) -> a nurse] The nurse saw 18 of 40 patients, [Calculator(18 / 40) -> 0.45] 45%."


def augmented(folder: Path, *, texts: int = 3) -> Path:
    """C* in `folder`/augmented: `texts` times the same text, with two calls."""
    calls = (call("Calculator", 32, 0.7, "18 / 40", "0.45"), call("QA", 0, 1.0, "who?", "a nurse"))
    source = annotations(folder / "annotations", [annotated(n, PLAIN, *calls) for n in range(texts)])
    merge(MergeConfig(annotations=(source,), output=folder / "augmented"))
    return folder / "augmented"


def as_earlier_versions_wrote(folder: Path) -> None:
    """Give C* the column `tools` and a manifest without declarations."""
    import json

    path = folder / ROWS / "00000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.rename_columns({"tool_names": "tools"}), path)
    assert isinstance(rows, pa.Table)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["tool_specs"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "README.md").unlink()
