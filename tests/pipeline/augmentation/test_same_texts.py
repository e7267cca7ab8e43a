"""Annotations that share texts: refused, or their calls united, whatever the order of folders and files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.thresholds import examples_by_threshold
from pipeline.augmentation import same_texts
from pipeline.augmentation.annotated_rows import rows_of
from pipeline.augmentation.merge import MergeManifest, merge
from pipeline.augmentation.same_texts import SameTextError, UnitedRows, require_equal_texts, united
from pipeline.augmentation.slices import SliceError
from pipeline.base.analysis_config import ThresholdsConfig
from pipeline.base.config import AnnotateConfig, CorpusConfig, MergeConfig, MethodConfig, ModelConfig
from pipeline.base.records import Annotation
from pipeline.method.merging import choose
from pipeline.storage.kinds import AUGMENTED
from pipeline.storage.manifest import AnnotationManifest, CorpusState, read_manifest
from pipeline.storage.row_files import ROWS
from tests.pipeline.augmentation.test_merge import FLOORS, annotated, annotations, call

pytestmark = pytest.mark.unit


def merged(output: Path, *folders: Path, **options: Any) -> tuple[list[dict[str, Any]], MergeManifest]:
    manifest = merge(MergeConfig(annotations=folders, output=output, same_texts="unite", **options))
    return pq.read_table(output / ROWS).to_pylist(), manifest


def test_the_calls_of_a_text_are_united(tmp_path: Path) -> None:
    first = annotations(tmp_path / "a", [annotated(1, "some text", call("QA", 0, 2.0)), annotated(2, "two")])
    second = annotations(
        tmp_path / "b", [annotated(1, "some text", call("Calendar", 4, 2.0)), annotated(2, "two")]
    )
    rows, manifest = merged(tmp_path / "c", first, second)
    assert [row["text"] for row in rows] == ["[QA(a) -> b] some [Calendar() -> b] text"]
    assert rows[0]["tool_names"] == ["QA", "Calendar"]
    assert (manifest.texts, manifest.calls, manifest.annotated_texts) == (1, 2, 2)
    assert manifest.tools["QA"].candidates == 1
    assert [source.texts for source in manifest.sources] == [2, 2]


def test_equal_calls_count_once_with_the_larger_gain_and_its_result() -> None:
    rows = [
        annotated(1, "some text", call("QA", 0, 2.0, "a", "low"), call("QA", 0, 1.5, "b")).to_row(),
        annotated(1, "some text", call("QA", 0, 3.0, "a", "high"), call("QA", 5, 1.5, "a")).to_row(),
        annotated(1, "some text", call("QA", 0, 3.0, "a", "zero")).to_row(),
    ]
    for order in (rows, rows[::-1]):
        calls = united(order)["calls"]
        assert [(one["position"], one["input"], one["gain"], one["result"]) for one in calls] == [
            (0, "a", 3.0, "high"),
            (0, "b", 1.5, "b"),
            (5, "a", 1.5, "b"),
        ]


def test_of_one_tools_calls_at_a_position_the_best_of_all_folders_stays(tmp_path: Path) -> None:
    first = annotations(tmp_path / "a", [annotated(1, "some text", call("QA", 0, 2.0, "first"))])
    second = annotations(tmp_path / "b", [annotated(1, "some text", call("QA", 0, 3.0, "second"))])
    rows, manifest = merged(tmp_path / "c", first, second)
    assert [row["text"] for row in rows] == ["[QA(second) -> b] some text"]
    assert manifest.calls == 1


def texts_of(draw: st.DrawFn) -> list[Annotation]:
    ids = draw(st.lists(st.integers(0, 12), unique=True, max_size=10))
    tools = st.sampled_from(["QA", "WikiSearch", "Calculator"])
    calls = st.builds(
        call,
        tools,
        st.sampled_from([0, 4, 5, 9]),
        st.sampled_from([0.7, 1.0, 1.5, 2.0]),
        st.sampled_from(["a", "c"]),
        st.sampled_from(["b", "d"]),
    )
    return [annotated(i, f"text {i} and more", *draw(st.lists(calls, max_size=4))) for i in ids]


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from(["random", "gain"]), st.randoms())
def test_bytes_do_not_depend_on_the_order_of_folders_and_files(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    most: int,
    cap_by: str,
    shuffle: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("orders")
    found = [data.draw(st.composite(texts_of)()) for _ in range(3)]
    files = []
    for order in range(2):
        sources = [annotations(folder / f"{order}-{n}", one, files=order + 1) for n, one in enumerate(found)]
        shuffle.shuffle(sources)
        output = folder / f"c{order}"
        merged(output, *sources, max_examples=most, cap_by=cap_by, plain_share=0.3)
        files.append((output / ROWS / "00000.parquet").read_bytes())
        for one in found:
            shuffle.shuffle(one)
    assert files[0] == files[1]


def test_it_is_what_a_merge_of_one_folder_with_the_united_rows_gives(tmp_path: Path) -> None:
    generator = random.Random(4)

    def some_calls() -> list[Any]:
        return [
            call(
                generator.choice(["QA", "MT", "Calculator"]),
                generator.choice([0, 4]),
                0.5 + generator.random(),
            )
            for _ in range(generator.randrange(4))
        ]

    found = [[annotated(i, f"text {i} and", *some_calls()) for i in range(60)] for _ in range(3)]
    folders = [annotations(tmp_path / str(n), one) for n, one in enumerate(found)]
    rows, manifest = merged(tmp_path / "united", *folders, max_examples=9)
    together = [
        Annotation.from_row(
            {**pair[0].to_row(), **united(one.to_row() for one in pair), "status": "annotated"}
        )
        for pair in zip(*found, strict=True)
    ]
    single = annotations(tmp_path / "single", together)
    expected = merge(MergeConfig(annotations=(single,), output=tmp_path / "expected", max_examples=9))
    assert rows == pq.read_table(tmp_path / "expected" / ROWS).to_pylist()
    assert manifest.tools == expected.tools
    assert len(rows) > 9


def test_rows_wait_on_disk_in_parts_and_come_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_texts, "_PART_ROWS", 5)
    monkeypatch.setattr(same_texts, "_CHUNK_ROWS", 7)
    rows = [
        annotated(i << 26, f"text {i}", call("QA", 0, 2.0, str(n))).to_row()
        for n in (0, 1)
        for i in range(40)
    ]
    rows = [{name: row[name] for name in ("text_id", "text", "calls")} for row in rows]
    with UnitedRows(rows, 40, tmp_path) as stored:
        assert len(stored._parts) == 9
        sizes = [part.seek(0, 2) for part in stored._parts]
        assert min(sizes) > 0.3 * max(sizes), "one part would hold nearly all rows"
        for _ in range(2):
            back = sorted(stored.read(), key=lambda row: row["text_id"])
            assert [row["text_id"] for row in back] == [i << 26 for i in range(40)]
            assert all([one["input"] for one in row["calls"]] == ["0", "1"] for row in back)
        assert not list(tmp_path.iterdir()), "files without names: nothing is left if the process dies"


def test_one_id_with_two_texts_is_refused_even_without_a_kept_call(tmp_path: Path) -> None:
    first = annotations(tmp_path / "a", [annotated(3, "same"), annotated(7, "some text", call("QA", 0, 2.0))])
    second = annotations(tmp_path / "b", [annotated(3, "same"), annotated(7, "another text")])
    message = r"1 ids have different texts, for example 7 in .*/a, .*/b; --same-texts unite needs"
    with pytest.raises(SameTextError, match=message):
        merged(tmp_path / "c", first, second)
    assert not (tmp_path / "c").exists()
    assert require_equal_texts([first, first]) == 2


def test_without_the_option_shared_texts_are_refused_and_the_option_is_named(tmp_path: Path) -> None:
    folders = [annotations(tmp_path / name, [annotated(3, "same")]) for name in "ab"]
    with pytest.raises(SameTextError, match=r"1 duplicate texts, for example text 3 in .*--same-texts unite"):
        merge(MergeConfig(annotations=tuple(folders), output=tmp_path / "c"))


def test_the_option_changes_nothing_where_no_text_is_shared(tmp_path: Path) -> None:
    one = annotations(tmp_path / "a", [annotated(n, "some text", call("QA", 0, 2.0)) for n in range(9)])
    two = annotations(tmp_path / "b", [annotated(n, "some text", call("MT", 0, 2.0)) for n in range(9, 20)])
    merged(tmp_path / "c", one, two)
    merge(MergeConfig(annotations=(two, one), output=tmp_path / "d"))
    files = [(tmp_path / name / ROWS / "00000.parquet").read_bytes() for name in "cd"]
    assert files[0] == files[1]


def test_thresholds_count_what_merge_keeps(tmp_path: Path) -> None:
    first = annotations(tmp_path / "a", [annotated(n, "text", call("QA", 0, 1.0 + n)) for n in range(4)])
    second = annotations(tmp_path / "b", [annotated(n, "text", call("QA", 0, 2.0)) for n in range(4)])
    _, manifest = merged(tmp_path / "c", first, second)
    counted = examples_by_threshold(
        ThresholdsConfig(annotations=(first, second), same_texts="unite", tau_f=(1.0, 2.5))
    )
    assert counted[1.0]["QA"] == manifest.tools["QA"].examples == 4
    assert counted[2.5]["QA"] == 2


def test_each_round_may_have_its_slices(tmp_path: Path) -> None:
    def slice_of(name: str, slice_: str, model: str, text_id: int) -> Path:
        folder = annotations(tmp_path / name, [annotated(text_id, "text", call("QA", 0, 2.0))])
        config = AnnotateConfig(
            corpus=CorpusConfig(slice=slice_),
            model=ModelConfig(path=model),
            method=MethodConfig(),
            output=folder,
        )
        corpus = CorpusState(files=1, bytes=1, digest=slice_, sliced_from="all")
        manifest: AnnotationManifest = read_manifest(folder)
        manifest.model_copy(update={"config": config, "corpus": corpus}).write(folder)
        return folder

    first = [slice_of("a", "0/2", "m", 1), slice_of("b", "1/2", "m", 2)]
    second = [slice_of("c", "0/2", "m2", 1), slice_of("d", "1/2", "m2", 2)]
    rows, _ = merged(tmp_path / "out", *first, *second)
    assert [row["text_id"] for row in rows] == [1, 2]
    with pytest.raises(SliceError, match="1 of 2 slices are missing: 1/2"):
        merged(tmp_path / "out", *first, second[0])


def test_a_cap_over_united_rows_takes_texts_and_not_rows(tmp_path: Path) -> None:
    folders = [
        annotations(tmp_path / name, [annotated(n, "text", call("QA", 0, 2.0)) for n in range(10)])
        for name in "ab"
    ]
    with rows_of(folders, FLOORS, "unite", tmp_path) as rows:
        mixture = choose(rows.read(), FLOORS, 4, seed=0)
        left = [row["text_id"] for row in rows.read() if mixture.calls(row)]
    assert mixture.tools["QA"].candidates == rows.texts == 10
    assert len(left) == len(np.unique(left)) == 4


def test_the_output_is_one_of_merge(tmp_path: Path) -> None:
    folders = [annotations(tmp_path / name, [annotated(1, "text", call("QA", 0, 2.0))]) for name in "ab"]
    merged(tmp_path / "c", *folders)
    assert AUGMENTED.is_marked(tmp_path / "c")
    assert not list(AUGMENTED.foreign(tmp_path / "c"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
