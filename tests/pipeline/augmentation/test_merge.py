"""Step 5: which calls stay, where they stand, what a merge refuses; its files depend on nothing else."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augmentation.merge import MergeError, MergeManifest, augment, merge, merge_problem
from pipeline.augmentation.same_texts import SameTextError
from pipeline.base.config import AnnotateConfig, MergeConfig, MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Document, Text
from pipeline.method.merging import choose, kept_calls
from pipeline.storage.counts import count_rows
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, CorpusState, ManifestError, Session
from pipeline.storage.row_files import ROWS
from tools_service.base.errors import ConfigurationError
from tools_service.base.locks import OutputInUseError, output_lock
from tools_service.base.ownership import NotOwnError
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import remove_calls

pytestmark = pytest.mark.unit

FLOORS: dict[str, float] = {"QA": 1.0, "WikiSearch": 1.0, "Calculator": 0.5, "Calendar": 1.0, "MT": 0.5}
METHOD = MethodConfig()


def call(
    tool: str,
    position: int,
    gain: float,
    argument: str = "a",
    result: str = "b",
    l_call: float | None = 9.0,
) -> Call:
    if tool == "Calendar":
        argument = ""
    return Call(tool, position, 0.1, argument, result, 1.0, 1.0 + gain, l_call, gain)


def annotated(text_id: int, text: str, *calls: Call) -> Annotation:
    status = "annotated" if calls else "no_calls"
    return Annotation(Text(text_id, Document(f"file#{text_id}"), text), status, None, calls)


def annotations(
    folder: Path,
    found: Sequence[Annotation],
    *,
    files: int = 2,
    method: MethodConfig = METHOD,
    state: str = "finished",
) -> Path:
    """A folder as annotate leaves it."""
    rows = [one.to_row() for one in found]
    (folder / ROWS).mkdir(parents=True)
    for number in range(files):
        table = pa.Table.from_pylist(rows[number::files], schema=ANNOTATION_SCHEMA)
        pq.write_table(table, folder / ROWS / f"{number}.parquet")
    manifest = AnnotationManifest(
        state="finished" if state == "finished" else "unfinished",
        config=AnnotateConfig(method=method, output=folder),
        versions={},
        corpus=CorpusState(files=1, bytes=1, digest=""),
        sessions=(Session(started="2023-01-30T00:00:00+00:00"),),
        counts=count_rows(rows, method),
    )
    manifest.write(folder)
    return folder


def merged(
    tmp_path: Path, found: Sequence[Annotation], **settings: object
) -> tuple[list[dict], MergeManifest]:
    source = annotations(tmp_path / "annotations", found)
    config = MergeConfig(annotations=(source,), output=tmp_path / "augmented", **settings)
    manifest = merge(config)
    return pq.read_table(config.output / ROWS).to_pylist(), manifest


def test_calls_are_put_where_they_stand(tmp_path: Path) -> None:
    text = "The nurse saw 18 of 40 patients, 45%."
    found = annotated(
        7, text, call("Calculator", 32, 0.7, "18 / 40", "0.45"), call("QA", 0, 1.0, "who?", "a nurse")
    )
    rows, manifest = merged(tmp_path, [found])
    assert rows == [
        {
            "text_id": 7,
            "text": "[QA(who?) -> a nurse] The nurse saw 18 of 40 patients, [Calculator(18 / 40) -> 0.45] 45%.",  # noqa: E501
            "plain": text,
            "tool_names": ["QA", "Calculator"],
        }
    ]
    assert (manifest.texts, manifest.calls) == (1, 2)


def test_texts_without_a_call_left_are_not_in_the_corpus(tmp_path: Path) -> None:
    """A document with exactly one call stays; one whose only call is below tau_f goes."""
    found = [
        annotated(1, "one call"),
        annotated(2, "one call", call("QA", 3, 1.0)),
        annotated(3, "one call", call("QA", 3, 0.99)),
    ]
    rows, _ = merged(tmp_path, found)
    assert [row["text_id"] for row in rows] == [2]


def test_tau_f_itself_is_kept() -> None:
    calls = [call("QA", 0, 1.0, "a"), call("QA", 1, 0.999999, "b", l_call=None)]
    assert [one.input for one in _kept(calls, "text")] == ["a"]


def test_of_one_tools_calls_at_a_position_the_best_stays() -> None:
    calls = [
        call("QA", 3, 1.5, "b"),
        call("QA", 3, 2.5, "z"),
        call("QA", 3, 2.5, "c"),
        call("QA", 5, 1.1, "d"),
        call("WikiSearch", 3, 1.2, "e"),
    ]
    assert [(one.position, one.tool, one.input) for one in _kept(calls, "a text")] == [
        (3, "QA", "c"),
        (3, "WikiSearch", "e"),
        (5, "QA", "d"),
    ]


def test_translation_of_what_stands_only_later_is_dropped() -> None:
    text = "pollo con arroz, that is pollo"
    calls = [call("MT", 0, 3.0, "pollo con"), call("MT", 15, 3.0, "pollo"), call("MT", 0, 2.0, "gato")]
    assert [(one.position, one.input) for one in _kept(calls, text)] == [(0, "gato"), (15, "pollo")]


def _kept(calls: Sequence[Call], text: str) -> list[Call]:
    return kept_calls(annotated(1, text, *calls).to_row()["calls"], text, FLOORS, {"MT"})


words = st.text(st.sampled_from("ab 1.,é漢\n[](->"), min_size=1, max_size=40)
inputs = st.text(st.sampled_from("ab 1+"), min_size=1, max_size=5)


@st.composite
def texts_with_calls(draw: st.DrawFn) -> Annotation:
    text = draw(words)
    calls = draw(
        st.lists(
            st.builds(
                call,
                st.sampled_from(PACKAGED),
                st.integers(0, len(text)),
                st.floats(-2, 4),
                inputs,
                inputs,
                st.just(5.0),
            ),
            max_size=8,
        )
    )
    return annotated(draw(st.integers(0, 2**63 - 1)), text, *calls)


@settings(max_examples=40, deadline=None)
@given(texts_with_calls())
def test_removing_the_calls_gives_the_text_back(found: Annotation) -> None:
    row = found.to_row()
    mixture = choose([row], FLOORS, max_examples=10, seed=0, input_rule=frozenset({"MT"}))
    left = mixture.calls(row)
    assert left == _kept(found.calls, found.text.text)
    assert all(one.gain >= FLOORS[one.tool] for one in left)
    assert len({(one.tool, one.position) for one in left}) == len(left)
    if left:
        (augmented,) = augment([row], mixture, Counter())
        assert remove_calls(augmented["text"], left) == augmented["plain"] == found.text.text


@settings(max_examples=15, deadline=None)
@given(
    st.lists(texts_with_calls(), max_size=12, unique_by=lambda one: one.text.text_id),
    st.integers(1, 4),
    st.randoms(),
)
def test_caps_choose_texts_whatever_their_order(
    found: list[Annotation], most: int, shuffle: random.Random
) -> None:
    rows = [one.to_row() for one in found]
    mixture = choose(rows, FLOORS, most, seed=3, input_rule=frozenset({"MT"}))
    left = {row["text_id"]: mixture.calls(row) for row in rows}
    for tool in PACKAGED:
        candidates = sum(tool in {one.tool for one in _kept(one.calls, one.text.text)} for one in found)
        assert mixture.tools[tool].candidates == candidates
        assert sum(tool in {one.tool for one in calls} for calls in left.values()) == min(candidates, most)
    shuffle.shuffle(rows)
    again = choose(rows, FLOORS, most, seed=3, input_rule=frozenset({"MT"}))
    assert {row["text_id"]: again.calls(row) for row in rows} == left


def test_the_seed_changes_the_choice() -> None:
    rows = [annotated(number, "a text", call("QA", 0, 2.0)).to_row() for number in range(40)]
    chosen = [
        {row["text_id"] for row in rows if choose(rows, FLOORS, 10, seed).calls(row)} for seed in (0, 1)
    ]
    assert [len(one) for one in chosen] == [10, 10]
    assert chosen[0] != chosen[1]


def test_at_one_position_one_of_the_tools_can_be_kept(tmp_path: Path) -> None:
    both = (call("QA", 5, 2.0), call("WikiSearch", 5, 2.0))
    found = [annotated(n, "some text", *both, call("Calendar", 0, 2.0)) for n in range(40)]
    for one, wanted in ((False, {("QA", "WikiSearch", "Calendar")}), (True, None)):
        rows, manifest = merged(tmp_path / str(one), found, one_call_per_position=one)
        tools = Counter(tuple(row["tool_names"]) for row in rows)
        assert len(rows) == 40
        if wanted is not None:
            assert set(tools) == wanted
        else:
            assert set(tools) == {("QA", "Calendar"), ("WikiSearch", "Calendar")}
            assert min(tools.values()) > 8
            assert manifest.tools["QA"].calls + manifest.tools["WikiSearch"].calls == 40


def test_a_capped_tools_calls_go_and_the_others_stay(tmp_path: Path) -> None:
    found = [annotated(n, "some text", call("QA", 0, 2.0), call("Calendar", 5, 2.0)) for n in range(3)]
    found += [annotated(9, "some text", call("QA", 0, 2.0))]
    rows, manifest = merged(tmp_path, found, max_examples=3)
    assert sum("QA" in row["tool_names"] for row in rows) == 3
    assert sum("Calendar" in row["tool_names"] for row in rows) == 3
    assert all(("[QA(" in row["text"]) == ("QA" in row["tool_names"]) for row in rows)
    assert manifest.tools["QA"].candidates == 4
    assert manifest.tools["QA"].examples == manifest.tools["QA"].calls == 3


def test_the_manifest_has_the_papers_table(tmp_path: Path) -> None:
    found = [
        annotated(n, "some text", call("Calculator", 0, gain)) for n, gain in enumerate([0.4, 0.5, 1.2, 3.0])
    ]
    found += [annotated(9, "some text", call("QA", 0, 2.0), call("QA", 2, 1.0))]
    _, manifest = merged(tmp_path, found)
    assert manifest.tools["Calculator"].at == {"0.5": 3, "1.0": 2, "2.0": 1}
    assert manifest.tools["QA"].at == {"0.5": None, "1.0": 1, "2.0": 1}
    assert manifest.tools["QA"].calls == 2


def test_files_do_not_depend_on_the_order_of_the_annotations(tmp_path: Path) -> None:
    found = [annotated(n * 7 % 31, f"text {n}", call("QA", 0, 2.0)) for n in range(31)]
    first = annotations(tmp_path / "a", found, files=3)
    second = annotations(tmp_path / "b", found[::-1], files=2)
    for folder in (first, second):
        merge(MergeConfig(annotations=(folder,), output=tmp_path / f"c-{folder.name}"))
    files = [next((tmp_path / name / ROWS).iterdir()).read_bytes() for name in ("c-a", "c-b")]
    assert files[0] == files[1]
    ids = pq.read_table(tmp_path / "c-a" / ROWS)["text_id"].to_pylist()
    assert ids == sorted(range(31))


def test_slices_are_merged_and_duplicates_refused(tmp_path: Path) -> None:
    first = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))])
    second = annotations(tmp_path / "b", [annotated(2, "text", call("QA", 0, 2.0))])
    manifest = merge(MergeConfig(annotations=(first, second), output=tmp_path / "c"))
    assert manifest.texts == 2
    third = annotations(tmp_path / "d", [annotated(2, "text", call("QA", 0, 2.0))])
    with pytest.raises(SameTextError, match=r"1 duplicate texts, for example text 2 in .*d;"):
        merge(MergeConfig(annotations=(first, second, third), output=tmp_path / "e"))


@pytest.mark.parametrize(
    ("tau_f", "message"),
    [
        ({"Calculator": 0.4}, r"tau_f\.Calculator = 0\.4 is below 0\.5"),
        ({"QA": 2.0, "MT": 1.0}, r"tau_f\.MT: none of the annotations has this tool"),
    ],
)
def test_thresholds_that_were_not_annotated_for_are_refused(
    tmp_path: Path, tau_f: dict[str, float], message: str
) -> None:
    method = MethodConfig(tools=("QA", "Calculator"))
    source = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))], method=method)
    with pytest.raises(ConfigurationError, match=message):
        merge(MergeConfig(annotations=(source,), output=tmp_path / "c", tau_f=tau_f))


def test_annotations_with_different_thresholds_need_one_that_fits_all(tmp_path: Path) -> None:
    sources = tuple(
        annotations(
            tmp_path / str(tau_f),
            [annotated(int(10 * tau_f), "text", call("QA", 0, 1.7))],
            method=MethodConfig(tools=("QA",), qa=ToolMethod(tau_f=tau_f)),
        )
        for tau_f in (1.0, 1.5)
    )
    with pytest.raises(ConfigurationError, match=r"tau_f\.QA: .*\[1\.0, 1\.5\]; give one of at least 1\.5"):
        merge(MergeConfig(annotations=sources, output=tmp_path / "c"))
    assert merge(MergeConfig(annotations=sources, output=tmp_path / "c", tau_f={"QA": 1.6})).texts == 2


def test_what_is_not_a_finished_annotation_is_refused(tmp_path: Path) -> None:
    unfinished = annotations(tmp_path / "a", [], state="unfinished")
    with pytest.raises(ManifestError, match="not finished"):
        merge(MergeConfig(annotations=(unfinished,), output=tmp_path / "c"))
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        merge(MergeConfig(annotations=(tmp_path / "nothing",), output=tmp_path / "c"))


def test_a_call_outside_its_text_names_the_text(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"text 5: QA\(a\): position 99 outside"):
        merged(tmp_path, [annotated(5, "text", call("QA", 99, 2.0))])
    assert not (tmp_path / "augmented").exists()


def test_an_earlier_merge_is_replaced_and_anything_else_left_alone(tmp_path: Path) -> None:
    source = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))])
    config = MergeConfig(annotations=(source,), output=tmp_path / "c")
    merge(config)
    assert merge(config.model_copy(update={"tau_f": {"QA": 5.0}})).texts == 0
    assert pq.read_table(config.output / ROWS).num_rows == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    (config.output / MANIFEST).write_text("{}")
    with pytest.raises(ConfigurationError, match="not empty and not a result of merge"):
        merge(config)


def lose(folder: Path) -> None:
    (folder / ROWS / "1.parquet").unlink()


def cut(folder: Path) -> None:
    path = folder / ROWS / "1.parquet"
    path.write_bytes(path.read_bytes()[:-5])


def empty(folder: Path) -> None:
    shutil.rmtree(folder / ROWS)


def double(folder: Path) -> None:
    shutil.copyfile(folder / ROWS / "1.parquet", folder / ROWS / "copy.parquet")


@pytest.mark.parametrize("damage", [lose, cut, empty, double])
def test_annotations_that_lost_rows_are_refused_and_an_earlier_merge_stays(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    found = [annotated(n, "text", call("QA", 0, 2.0)) for n in range(5)]
    source = annotations(tmp_path / "a", found)
    config = MergeConfig(annotations=(source,), output=tmp_path / "c")
    merge(config)
    assert merge_problem(config.output) is None
    damage(source)
    with pytest.raises(ManifestError, match="/a"):
        merge(config)
    assert merge_problem(config.output) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_what_a_merge_lost_is_named(tmp_path: Path) -> None:
    source = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))])
    config = MergeConfig(annotations=(source,), output=tmp_path / "c")
    merge(config)
    path = config.output / ROWS / "00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "00000.parquet: cannot be read" in str(merge_problem(config.output))
    path.unlink()
    assert "C* has 1 texts, but" in str(merge_problem(config.output))
    path.write_bytes(whole)
    (config.output / MANIFEST).write_text("[]")
    assert str(config.output) in str(merge_problem(config.output))


@pytest.mark.parametrize(
    "name", ["thesis.txt", "rows/thesis.parquet", "rows/1.parquet", "notes/", ".git/config"]
)
def test_a_merge_does_not_replace_what_a_user_added(tmp_path: Path, name: str) -> None:
    source = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))])
    config = MergeConfig(annotations=(source,), output=tmp_path / "c")
    merge(config)
    added = config.output / name
    added.parent.mkdir(exist_ok=True)
    added.mkdir() if name.endswith("/") else added.write_text("years of work")
    with pytest.raises(NotOwnError, match=name.split("/", maxsplit=1)[0]):
        merge(config)
    assert added.exists()
    with pytest.raises(NotOwnError):
        merge(config.model_copy(update={"output": source}))
    assert (source / ROWS / "0.parquet").exists()


def test_two_merges_into_one_output_do_not_mix(tmp_path: Path) -> None:
    source = annotations(tmp_path / "a", [annotated(1, "text", call("QA", 0, 2.0))])
    config = MergeConfig(annotations=(source,), output=tmp_path / "c")
    with output_lock(config.output), pytest.raises(OutputInUseError, match="is writing here"):
        merge(config)
    merge(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(texts_with_calls(), max_size=12, unique_by=lambda one: one.text.text_id),
    st.integers(1, 4),
    st.randoms(),
)
def test_a_cap_by_gain_takes_the_texts_with_the_largest_gain(
    found: list[Annotation], most: int, shuffle: random.Random
) -> None:
    rows = [one.to_row() for one in found]
    mixture = choose(rows, FLOORS, most, seed=3, input_rule=frozenset({"MT"}), cap_by="gain")
    chosen = {row["text_id"]: {one.tool for one in mixture.calls(row)} for row in rows}
    for tool in PACKAGED:
        best: dict[int, float] = {}
        for one in found:
            gains = [c.gain for c in _kept(one.calls, one.text.text) if c.tool == tool]
            if gains:
                best[one.text.text_id] = max(gains)
        ours = [gain for text_id, gain in best.items() if tool in chosen[text_id]]
        assert sorted(ours, reverse=True) == sorted(best.values(), reverse=True)[:most]
        assert mixture.tools[tool].candidates == len(best)
    shuffle.shuffle(rows)
    again = choose(rows, FLOORS, most, seed=3, input_rule=frozenset({"MT"}), cap_by="gain")
    assert {row["text_id"]: {one.tool for one in again.calls(row)} for row in rows} == chosen


def test_of_equal_gains_the_seed_decides() -> None:
    rows = [annotated(number, "a text", call("QA", 0, 2.0)).to_row() for number in range(40)]
    rows.append(annotated(99, "a text", call("QA", 0, 3.0)).to_row())
    chosen = [
        {row["text_id"] for row in rows if choose(rows, FLOORS, 10, seed, cap_by="gain").calls(row)}
        for seed in (0, 1)
    ]
    assert [len(one) for one in chosen] == [10, 10]
    assert chosen[0] != chosen[1]
    assert all(99 in one for one in chosen)
