"""Libraries read the folders that annotate, merge and score write; rows of earlier versions are read here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.augmentation.merge import merge
from pipeline.base.config import AnnotateConfig, MergeConfig, MethodConfig, ScoreConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Cost, Document, Funnel, PhaseWork, Text
from pipeline.scoring.manifest import ScoreManifest, score_card
from pipeline.storage.card import CARD, annotation_card, write_card
from pipeline.storage.counts import COLUMNS, count_rows
from pipeline.storage.manifest import MANIFEST, CorpusState, read_finished
from pipeline.storage.row_files import ROWS, read_rows, recover_rows
from tests.pipeline.augmentation.test_merge import annotations, call
from tools_service.base.files import atomic_write

pytestmark = pytest.mark.unit

_FUNNEL = ANNOTATION_SCHEMA.field("funnel").type.value_type
_EARLIER_FUNNEL = pa.struct(
    [
        field if field.name != "discarded" else ("discarded", pa.map_(pa.string(), pa.int64()))
        for field in _FUNNEL
    ]
)
EARLIER_SCHEMA = pa.schema(
    [
        field if field.name != "funnel" else ("funnel", pa.list_(_EARLIER_FUNNEL))
        for field in ANNOTATION_SCHEMA
    ]
)


def annotation(text_id: int) -> Annotation:
    funnel = Funnel("QA", "all", 1, 5, 2, 1, 1, {"bracket": 3, "tool: no result": text_id + 1})
    work = PhaseWork("QA", "decode", Cost(1), Cost(2, 1))
    text = Text(text_id, Document("file#1"), "some text")
    return Annotation(text, "annotated", None, (call("QA", 4, 2.0),), (funnel,), (work,))


def as_earlier_versions_wrote(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        for stage in row["funnel"]:
            stage["discarded"] = [(entry["reason"], entry["count"]) for entry in stage["discarded"]]
    pq.write_table(pa.Table.from_pylist(rows, EARLIER_SCHEMA), path)


def folder_of(tmp_path: Path, *, earlier_files: int = 0) -> Path:
    folder = annotations(tmp_path / "annotations", [annotation(n) for n in range(6)], files=2)
    for path in sorted((folder / ROWS).glob("*.parquet"))[:earlier_files]:
        as_earlier_versions_wrote(path)
    write_card(folder, annotation_card(read_finished(folder)))
    return folder


@pytest.mark.parametrize("earlier_files", [0, 1, 2])
def test_rows_of_earlier_versions_mean_the_same(tmp_path: Path, earlier_files: int) -> None:
    """A run that an earlier version began, and this one resumed, has files of both kinds."""
    folder = folder_of(tmp_path, earlier_files=earlier_files)
    assert len(recover_rows(folder / ROWS)) == 6
    read = sorted(read_rows(folder, ANNOTATION_SCHEMA.names), key=lambda row: row["text_id"])
    assert [Annotation.from_row(row) for row in read] == [annotation(n) for n in range(6)]
    counts = count_rows(read_rows(folder, COLUMNS), MethodConfig())
    assert counts.tools["QA"].discarded == {"tool: no result": 21, "bracket": 18}
    manifest = merge(MergeConfig(annotations=(folder,), output=tmp_path / "augmented"))
    assert (manifest.texts, manifest.calls) == (6, 6)


def load(folder: Path, tmp_path: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


def test_datasets_loads_annotations_and_c_star(tmp_path: Path) -> None:
    """Only the rows: not the manifest, and not the log of errors, which is JSON too."""
    folder = folder_of(tmp_path)
    (folder / "logs").mkdir()
    (folder / "logs" / "host-1.jsonl").write_text('{"error": "none"}\n')
    loaded = load(folder, tmp_path)
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": 6}
    assert loaded["train"][0]["funnel"][0]["discarded"][0] == {"reason": "bracket", "count": 3}
    merge(MergeConfig(annotations=(folder,), output=tmp_path / "augmented"))
    train = load(tmp_path / "augmented", tmp_path)["train"]
    assert train.column_names == ["text_id", "text", "plain", "tool_names"]
    assert train[0]["tool_names"] == ["QA"]


def test_datasets_loads_scores(tmp_path: Path) -> None:
    manifest = ScoreManifest(
        state="finished",
        config=ScoreConfig(),
        versions={},
        files=CorpusState(files=1, bytes=1, digest=""),
        started="2023-01-30T00:00:00+00:00",
    )
    (tmp_path / "scores" / "scores").mkdir(parents=True)
    lines = [
        json.dumps({"text": "a b", "position": 1, "insertion": " c", "score": score}) + "\n"
        for score in ({"gain": 0.5, "l_plus": 1.0}, {"reason": "context"})
    ]
    for number in range(2):
        (tmp_path / "scores" / "scores" / f"0000{number}-0000000000.jsonl").write_text("".join(lines))
    atomic_write(tmp_path / "scores" / MANIFEST, manifest.written())
    write_card(tmp_path / "scores", score_card(manifest))
    train = load(tmp_path / "scores", tmp_path)["train"]
    assert [row["score"].get("gain") for row in train] == [0.5, None] * 2


def test_pandas_polars_and_duckdb_read_annotations(tmp_path: Path) -> None:
    duckdb, pandas, polars = map(pytest.importorskip, ("duckdb", "pandas", "polars"))
    rows = folder_of(tmp_path) / ROWS
    counts = "list_sum([d.count for d in funnel[1].discarded])"
    assert duckdb.sql(f"select sum({counts}) from '{rows}/*.parquet'").fetchall() == [(39,)]
    assert len(pandas.read_parquet(rows)) == 6
    stages = polars.read_parquet(f"{rows}/*.parquet").explode("funnel").unnest("funnel").explode("discarded")
    assert stages["discarded"].struct.field("count").sum() == 39


def test_a_card_says_what_was_asked(tmp_path: Path) -> None:
    card = (folder_of(tmp_path) / CARD).read_text()
    assert "**Licence:** none is given here." in card
    assert "| QA | 0.05 | 5 | 5 | 1.0 | 30 | 6 | 6 |" in card
    assert AnnotateConfig().model.path in card
