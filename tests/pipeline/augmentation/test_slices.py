"""Slices are merged if all are there, once each, with one configuration; else an error says why."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.fixtures import small_run as annotating
from pipeline.augmentation.merge import merge
from pipeline.augmentation.slices import SliceError, expand, require_together
from pipeline.base.config import AnnotateConfig, CorpusConfig, MergeConfig, MethodConfig
from pipeline.corpus.files import find_files, list_files
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, begin, read_manifest
from pipeline.storage.row_files import ROWS

pytestmark = pytest.mark.unit

OF = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotated whole, and in slices."""
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", 5, 4)
    annotating.finished(folder, folder / "whole")
    for index in range(OF):
        annotating.finished(folder, folder / "slices" / str(index), slice_=f"{index}/{OF}")
    return folder


def test_merged_slices_are_the_merged_corpus(world: Path, tmp_path: Path) -> None:
    merge(MergeConfig(annotations=(world / "whole",), output=tmp_path / "whole"))
    made = merge(MergeConfig(annotations=(world / "slices" / "*",), output=tmp_path / "slices"))
    assert [source.slice for source in made.sources] == ["0/3", "1/3", "2/3"]
    rows = [pq.read_table(tmp_path / name / ROWS).to_pylist() for name in ("whole", "slices")]
    assert rows[0] == rows[1]
    assert rows[0]


def test_a_missing_slice_is_named_unless_it_may_be_missing(world: Path, tmp_path: Path) -> None:
    two = (world / "slices" / "0", world / "slices" / "2")
    with pytest.raises(SliceError, match=r"1 of 3 slices are missing: 1/3\..*--missing-slices"):
        merge(MergeConfig(annotations=two, output=tmp_path / "out"))
    made = merge(MergeConfig(annotations=two, output=tmp_path / "out", missing_slices=True))
    assert len(made.sources) == 2


def manifests(world: Path, *slices: str, **changed: object) -> dict[Path, AnnotationManifest]:
    """Those of runs over slices of the world, with changes to the configuration of the last."""
    found: dict[Path, AnnotationManifest] = {}
    for number, slice_ in enumerate(slices):
        corpus = CorpusConfig(paths=(str(world / "pages"),), slice=slice_)
        config = AnnotateConfig(corpus=corpus, **(changed if number == len(slices) - 1 else {}))
        folder = Path(f"run {number}")
        found[folder] = begin(world / "nowhere", config, list_files(corpus), find_files(corpus).files)
    return found


def test_a_slice_twice_is_refused(world: Path) -> None:
    with pytest.raises(SliceError, match="run 0 and run 2 are both slice 0/2"):
        require_together(manifests(world, "0/2", "1/2", "0/2"))


def test_slices_of_different_numbers_are_refused(world: Path) -> None:
    with pytest.raises(SliceError, match=r"run 0 is slice 0/2, run 1 is 2/3 of the same files"):
        require_together(manifests(world, "0/2", "2/3"), missing=True)


def test_slices_with_different_configurations_are_refused_by_their_fields(world: Path) -> None:
    with pytest.raises(
        SliceError, match=r"run 0 and run 1 are slices with different configurations: method\.seed: 0 → 5"
    ):
        require_together(manifests(world, "0/2", "1/2", method=MethodConfig(seed=5)))


def test_slices_of_two_corpora_are_held_apart(world: Path, tmp_path: Path) -> None:
    annotating.write_corpus(tmp_path / "pages", 2, 3)
    both = manifests(world, "0/2", "1/2")
    other = {Path(f"other {folder}"): one for folder, one in manifests(tmp_path, "0/2", "1/2").items()}
    require_together(both | other)
    del other[Path("other run 1")]
    with pytest.raises(
        SliceError, match=r"corpus of other run 0, 1 of 2 .* 1/2; other folders are slices of another"
    ):
        require_together(both | other)


def test_many_missing_slices_are_counted(world: Path) -> None:
    found = manifests(world, "3/5")
    [manifest] = found.values()
    config = manifest.config.model_copy(
        update={"corpus": manifest.config.corpus.model_copy(update={"slice": "3/500"})}
    )
    with pytest.raises(SliceError, match=r"499 of 500 slices are missing: 0/500, .* and 489 more"):
        require_together({Path("run 0"): manifest.model_copy(update={"config": config})})


def test_a_run_goes_on_only_with_its_own_slice(world: Path) -> None:
    manifest = read_manifest(world / "slices" / "0")
    assert manifest.config.corpus.slice == "0/3"
    assert manifest.corpus.files == 2
    other = annotating.config(world, world / "slices" / "0", slice_="1/3")
    with pytest.raises(Exception, match=r"corpus\.slice: '0/3' → '1/3'"):
        begin(other.output, other, list_files(other.corpus), find_files(other.corpus).files)


def test_globs_of_folders(world: Path, tmp_path: Path) -> None:
    slices = world / "slices"
    assert expand([slices / "*", slices / "1", world / "whole"]) == (
        *(slices / str(index) for index in range(OF)),
        world / "whole",
    )
    (tmp_path / "odd[1]").mkdir()
    (tmp_path / "odd[1]" / MANIFEST).write_text("{}")
    assert expand([tmp_path / "odd[1]"]) == (tmp_path / "odd[1]",)
    with pytest.raises(SliceError, match="none\\*: no folder matches"):
        expand([tmp_path / "none*"])
