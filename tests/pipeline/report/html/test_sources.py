"""Which outputs a report shows for a folder, and what it says where something is missing or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.augmentation.merge import merge
from pipeline.base.config import MergeConfig
from pipeline.report.html.sources import collect
from tests.pipeline.augmentation.test_merge import annotated, annotations, call
from tests.pipeline.exporting.augmented import PLAIN, augmented
from tests.pipeline.report.run_folders import damage, evaluated, fine_tuned, whole_run
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_a_whole_run(tmp_path: Path) -> None:
    report = collect(whole_run(tmp_path / "run"))
    assert report.annotation is not None
    assert report.annotation.state == "finished"
    assert report.augmented is not None
    assert [training.name for training in report.trainings] == ["model", "model-plain"]
    assert report.evaluation is not None
    assert report.problems == ()
    assert (report.title, report.folder) == ("run", str(tmp_path / "run"))


def test_what_stands_before_an_output_is_shown_too(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    model = collect(run / "model")
    assert [training.name for training in model.trainings] == ["model"]
    assert model.augmented is not None
    assert model.augmented.folder == str(run / "augmented")
    assert model.annotation is not None
    assert model.evaluation is None
    shutil.rmtree(run / "annotations")
    without_annotations = collect(run / "model")
    assert (without_annotations.annotation, without_annotations.problems) == (None, ())
    assert without_annotations.augmented is not None
    alone = collect(run / "evaluation.json")
    assert (alone.annotation, alone.augmented, alone.trainings) == (None, None, ())


def test_the_threshold_counts_with_the_options_of_merge_also_in_a_copy(tmp_path: Path) -> None:
    folder = annotations(tmp_path / "run" / "annotations", [annotated(1, PLAIN, call("QA", 0, 1.5))])
    merge(MergeConfig(annotations=(folder,), output=tmp_path / "run" / "augmented", max_examples=7))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    report = collect(tmp_path / "moved")
    assert report.annotation is not None
    assert report.annotation.calls.max_examples == 7
    alone = collect(tmp_path / "moved" / "annotations").annotation
    assert alone is not None
    assert alone.calls.max_examples == MergeConfig().max_examples


def test_of_several_annotations_the_largest_is_shown_and_the_report_says_so(tmp_path: Path) -> None:
    for name, texts in (("a", 2), ("b", 5), ("c", 3)):
        annotations(tmp_path / "slices" / name, [annotated(n, PLAIN) for n in range(texts)])
    report = collect(tmp_path)
    assert report.annotation is not None
    assert report.annotation.folder == str(tmp_path / "slices" / "b")
    [sentence] = report.problems
    assert sentence.startswith("There are 3 annotations; this page shows ")


def test_of_several_evaluations_the_latest_is_shown(tmp_path: Path) -> None:
    import os

    for name, time in (("sweep", 1e9), ("evaluation", 1e9 - 5)):
        file = evaluated(tmp_path / f"{name}.json", "m", right=())
        os.utime(file, (time, time))
    report = collect(tmp_path)
    assert report.evaluation is not None
    assert report.evaluation.file == str(tmp_path / "sweep.json")
    assert str(tmp_path / "evaluation.json") in report.problems[0]


@pytest.mark.parametrize(
    ("damaged", "missing"),
    [
        ("annotations/manifest.json", "annotation"),
        ("annotations/rows/0.parquet", "annotation"),
        ("augmented/manifest.json", "augmented"),
        ("augmented/rows/00000.parquet", "augmented"),
        ("evaluation.json", "evaluation"),
    ],
)
def test_a_damaged_part_is_a_sentence_and_the_rest_is_shown(
    tmp_path: Path, damaged: str, missing: str
) -> None:
    run = whole_run(tmp_path / "run")
    damage(run / damaged)
    report = collect(run)
    shown = {name for name in ("annotation", "augmented", "evaluation") if getattr(report, name) is not None}
    said = report.problems + (report.annotation.warnings if report.annotation is not None else ())
    assert {"annotation", "augmented", "evaluation"} - {missing} <= shown
    assert len(report.trainings) == 2
    assert any(damaged.partition("/")[0] in sentence for sentence in said)
    assert all("\n" not in sentence for sentence in said)


def test_a_model_whose_manifest_lacks_a_field_is_a_sentence(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    path = run / "model" / "manifest.json"
    path.write_text(path.read_text().replace('"max_steps":4', '"max_steps":"many"'))
    report = collect(run)
    assert [training.name for training in report.trainings] == ["model-plain"]
    [sentence] = report.problems
    assert str(path) in sentence


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = augmented(tmp_path)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"texts": 3', '"texts": "three"'))
    shutil.rmtree(tmp_path / "annotations")
    with pytest.raises(ConfigurationError, match=r"manifest\.json cannot be read as that of merge: .*texts"):
        collect(folder)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    annotations(tmp_path / "annotations", [annotated(1, PLAIN, call("QA", 0, 1.5))], state="unfinished")
    fine_tuned(tmp_path / "model", data=tmp_path / "augmented", steps=3, of=8, finished=False)
    report = collect(tmp_path)
    assert report.annotation is not None
    assert (report.annotation.state, report.annotation.texts_done) == ("unfinished", 1)
    assert [training.state for training in report.trainings] == ["unfinished"]
