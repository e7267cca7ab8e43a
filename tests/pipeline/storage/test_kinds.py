"""The marks and the names of each kind of output are those that the commands write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.augmentation.merge import MergeManifest
from pipeline.evaluation.results import Evaluation
from pipeline.exporting.run import ExportManifest
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest, RunIdentity
from pipeline.planning.estimate import Plan
from pipeline.scoring.manifest import ScoreManifest
from pipeline.storage.kinds import ANNOTATION, AUGMENTED, EVALUATION, EXPORT, FINE_TUNED, PLAN, SCORES
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.manifest import AnnotationManifest
from pipeline.storage.row_files import ROWS, write_rows
from tests.pipeline.inference.test_decode_batch import random_model
from tests.tools_service.encyclopedia import indexed
from tools_service.base.ownership import NotOwnError, OutputKind
from tools_service.indexing.build import INDEX

pytestmark = pytest.mark.unit

MANIFESTS = [
    (ANNOTATION, "manifest.json", AnnotationManifest),
    (AUGMENTED, "manifest.json", MergeManifest),
    (FINE_TUNED, "manifest.json", FinetuneManifest),
    (FINE_TUNED, "checkpoints/run.json", RunIdentity),
    (SCORES, "manifest.json", ScoreManifest),
    (EXPORT, "manifest.json", ExportManifest),
    (EVALUATION, "", Evaluation),
    (PLAN, "", Plan),
]


@pytest.mark.parametrize(("kind", "name", "model"), MANIFESTS)
def test_a_mark_has_names_that_its_manifest_always_has(kind: OutputKind, name: str, model: Any) -> None:
    required = {field for field, info in model.model_fields.items() if info.is_required()}
    assert kind.marks[name] <= required | {"time"}  # a plan's time may be null, but is written


def test_no_kind_is_mistaken_for_another(tmp_path: Path) -> None:
    made = indexed(tmp_path)
    assert INDEX.is_marked(made.index)
    assert list(INDEX.foreign(made.index)) == []
    kinds = [(kind, model) for kind, name, model in MANIFESTS if name == "manifest.json"]
    for kind, model in kinds:
        assert not kind.is_marked(made.index)
        others = [other for other, _ in kinds if other is not kind] + [INDEX]
        assert not [o.name for o in others if o.marks["manifest.json"] <= model.model_fields.keys()]


@pytest.mark.parametrize("kind", [ANNOTATION, FINE_TUNED, SCORES], ids=lambda kind: kind.name)
def test_no_lock_file_is_left_in_the_output_of_another_command(tmp_path: Path, kind: OutputKind) -> None:
    folders = [
        (other, model) for other, name, model in MANIFESTS if name == "manifest.json" and other is not kind
    ]
    for number, (_, model) in enumerate(folders):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(model.model_fields)))
        with pytest.raises(NotOwnError, match="was written by another command"), exclusive_lock(folder, kind):
            pass
        assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    damaged = dict.fromkeys(sorted(kind.marks["manifest.json"])[1:])
    (tmp_path / "manifest.json").write_text(json.dumps(damaged))
    with exclusive_lock(tmp_path, kind), exclusive_lock(tmp_path / "new", kind):
        pass


def test_the_files_of_a_run_have_names_of_ours(tmp_path: Path) -> None:
    (tmp_path / ROWS).mkdir()
    write_rows(tmp_path / ROWS, pa.table({"text_id": pa.array([7], pa.int64())}))
    assert list(ANNOTATION.foreign(tmp_path)) == []


def test_a_saved_model_has_names_of_ours(tmp_path: Path) -> None:
    model = random_model("Llama")
    for folder in (tmp_path, tmp_path / "checkpoints" / "step-000002" / "model"):
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    assert list(FINE_TUNED.foreign(tmp_path)) == []


@pytest.mark.parametrize(
    "name",
    ["thesis.txt", "model.ckpt", "my.safetensors", "NOTES.md", "checkpoints/notes.txt", "checkpoints/a/"],
)
def test_other_files_in_a_model_are_a_user_s(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("/") else path.write_text("years of work")
    assert list(FINE_TUNED.foreign(tmp_path)) == [name]
