"""The manifest of annotations: what goes on with a folder and what is refused; counts that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.config import AnnotateConfig, CorpusConfig, FinetuneConfig, MethodConfig, RayConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Cost, Document, Funnel, PhaseWork, Text
from pipeline.corpus.files import CorpusFile
from pipeline.finetuning import run_folder as runfolder
from pipeline.storage import manifest
from pipeline.storage.counts import COLUMNS, Counts, count_rows
from pipeline.storage.manifest import ManifestError, Session, begin, read_manifest
from pipeline.storage.row_files import ROWS, read_batches, read_rows
from tools_service.config import CalculatorConfig, CalendarConfig, Deployment, ToolsConfig

pytestmark = pytest.mark.unit

SHARDS = [
    CorpusFile("pages/a.jsonl", "/pages/a.jsonl", "", 100),
    CorpusFile("pages/b.jsonl", "/pages/b.jsonl", "", None),
]
CONFIG = AnnotateConfig(
    corpus=CorpusConfig(paths=("pages",)), method=MethodConfig(tools=("QA", "Calculator"))
)


def begun(folder: Path, config: AnnotateConfig = CONFIG, shards: list[CorpusFile] = SHARDS) -> None:
    begin(folder, config, shards).with_session(Session(started="2023-01-30T10:00:00+00:00")).write(folder)


def test_a_run_goes_on_with_what_it_began(tmp_path: Path) -> None:
    begun(tmp_path)
    begun(
        tmp_path,
        CONFIG.model_copy(
            update={
                "ray": RayConfig(actors=7),
                "tools": ToolsConfig(calculator=CalculatorConfig(deployment=Deployment(cpus=3))),
            }
        ),
    )
    manifest = read_manifest(tmp_path)
    assert manifest.state == "unfinished"
    assert len(manifest.sessions) == 2
    assert manifest.recipe.ray.actors == 7
    assert manifest.versions["ray"] == "2.60.0"


def test_another_recipe_is_refused_by_the_names_of_its_fields(tmp_path: Path) -> None:
    begun(tmp_path)
    calculator = CONFIG.method.calculator.model_copy(update={"k": 5})
    method = CONFIG.method.model_copy(update={"calculator": calculator, "seed": 1})
    other = CONFIG.model_copy(
        update={"method": method, "tools": ToolsConfig(calendar=CalendarConfig(today=True))}
    )
    with pytest.raises(ManifestError) as refused:
        begin(tmp_path, other, SHARDS)
    assert (
        "Different: method.calculator.k: 20 → 5; method.seed: 0 → 1; tools.calendar.today: False → True"
        in str(refused.value)
    )


def test_changed_files_of_the_corpus_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    begin(tmp_path, CONFIG, SHARDS[::-1])
    with pytest.raises(ManifestError, match="the files of the corpus: 2 of None bytes → 1 of 100 bytes"):
        begin(tmp_path, CONFIG, SHARDS[:1])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"state": "finished"}'])
def test_something_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ManifestError, match=r"manifest\.json: not a manifest"):
        begin(tmp_path, CONFIG, SHARDS)


def test_rows_without_a_manifest_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [])
    with pytest.raises(ManifestError, match="there are rows but no"):
        begin(tmp_path, CONFIG, SHARDS)


def write(folder: Path, found: list[Annotation], name: str = "0.parquet") -> None:
    (folder / ROWS).mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([one.to_row() for one in found], schema=ANNOTATION_SCHEMA),
        folder / ROWS / name,
    )


def text(number: int) -> Text:
    return Text(number, Document(f"a.jsonl#{number}"), "some text")


def calculated(gain: float) -> Call:
    return Call("Calculator", 4, 0.5, "1 + 1", "2", 1.0, 1.0 + gain, None, gain)


def test_counts_add_up_to_the_texts(tmp_path: Path) -> None:
    chosen = Funnel("Calculator", "an equals sign", 3, 30, 9, 8, 2, {"bracket": 21, "tool: deadline": 1})
    drawn = PhaseWork("Calculator", "decode", Cost(4, 0, 20, 5), Cost(5, 1, 30, 5))
    every: dict[str, Any] = {"work": (PhaseWork(None, "empty", Cost(4), Cost(5)), drawn)}
    write(
        tmp_path,
        [
            Annotation(
                text(1),
                "annotated",
                None,
                (calculated(0.5), calculated(0.49)),
                (Funnel("QA", "every text"), chosen),
                **every,
            ),
            Annotation(
                text(2), "no_calls", None, (), (Funnel("QA", "no: context: it has 9 tokens"),), **every
            ),
            Annotation(text(3), "no_calls", None, (), (Funnel("QA", "no: context: it has 7 tokens"), chosen)),
            Annotation(text(4), "skipped", "not JSON: line 4"),
            Annotation(text(5), "skipped", "not JSON: line 5"),
            Annotation(text(6), "failed", "LookupError: no such day"),
        ],
    )
    counts = count_rows(read_rows(tmp_path, COLUMNS), CONFIG.method)
    assert counts.texts == sum(counts.status.values()) == 6
    assert counts.status == {"annotated": 1, "no_calls": 2, "skipped": 2, "failed": 1}
    assert counts.reasons == {"skipped": {"not JSON": 2}, "failed": {"LookupError": 1}}
    assert (counts.calls, counts.token_forwards) == (2, 20)
    assert counts.work == (
        PhaseWork("Calculator", "decode", Cost(8, 0, 40, 10), Cost(10, 2, 60, 10)),
        PhaseWork(None, "empty", Cost(8), Cost(10)),
    )
    question, sums = counts.tools["QA"], counts.tools["Calculator"]
    assert (question.texts, question.selected) == (3, 1)
    assert question.selection == {"no: context": 2, "every text": 1}
    assert (sums.texts, sums.selected, sums.draws, sums.executed, sums.scored) == (2, 2, 60, 16, 4)
    assert (sums.kept, sums.texts_kept) == (1, 1)
    assert sums.discarded == {"bracket": 42, "tool: deadline": 2}


def test_what_was_run_is_compared_with_the_least_and_with_the_time(tmp_path: Path) -> None:
    shape = ModelShape(parameters=100, layers=2, heads=2, head_size=5, hidden=10, vocabulary=30)
    work = (
        PhaseWork("QA", "decode", Cost(8, 0, 40, 10), Cost(10, 2, 60, 10)),
        PhaseWork("QA", "plus", Cost(0), Cost(0)),
        PhaseWork(None, "empty", Cost(8), Cost(8)),
    )
    counts = Counts(texts=1, status={}, reasons={}, calls=0, token_forwards=18, work=work, tools={})
    ended = Session(started="2023-01-30T10:00:00+00:00", finished="2023-01-30T10:00:02+00:00", wall_s=2.0)
    manifest = begin(tmp_path, CONFIG, SHARDS).with_session(ended)
    compute = manifest.with_session(ended).completed(counts, shape).compute
    assert compute is not None
    assert compute.overhead == 20 / 16
    assert compute.overheads == {"QA": {"decode": 1.5, "plus": 1.0}, "shared": {"empty": 1.0}}
    assert compute.flops == 2 * 100 * 20 + 4 * 2 * 2 * 5 * 60 + 2 * 10 * 30 * 10
    assert compute.flops_least == 2 * 100 * 16 + 4 * 2 * 2 * 5 * 40 + 2 * 10 * 30 * 10
    assert compute.flops_per_s == compute.flops / 4
    killed = manifest.with_session(Session(started="2023-01-30T11:00:00+00:00"))
    unknown = killed.completed(counts, shape)
    assert unknown.compute is not None
    assert unknown.compute.flops_per_s is None
    unknown.write(tmp_path)
    assert read_manifest(tmp_path) == unknown


def test_rows_are_read_a_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open at once would grow with the corpus: there are 16,000 files to a million texts."""
    opened: list[Any] = []

    class Watched(pq.ParquetFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    for number in range(3):
        write(tmp_path, [Annotation(text(number), "no_calls")], f"{number}.parquet")
    monkeypatch.setattr(pq, "ParquetFile", Watched)
    for number, batch in enumerate(read_batches(tmp_path, ["status", "text_id"])):
        assert batch.to_pylist() == [{"status": "no_calls", "text_id": number}]
        assert [file.closed for file in opened] == [True] * number + [False]
    assert len(opened) == 3


def test_a_column_that_a_file_lacks_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [Annotation(text(1), "no_calls")])
    with pytest.raises(KeyError, match="colour"):
        list(read_batches(tmp_path, ["text_id", "colour"]))


def test_what_may_change_between_sessions_are_fields_that_there_are() -> None:
    """A name that is none would let nothing change, unnoticed."""

    def check(names: Any, fields: Any, path: str) -> None:
        for name in names:
            assert name in fields, f"{path}.{name}"
            if isinstance(names, dict) and names[name] is not True:
                [inner] = [one for one in models_in(fields[name].annotation) if hasattr(one, "model_fields")]
                check(names[name], inner.model_fields, f"{path}.{name}")

    def models_in(kind: Any) -> tuple[Any, ...]:
        return get_args(kind) or (kind,)

    check(manifest._OPERATIONAL, AnnotateConfig.model_fields, "annotate")
    check(runfolder._OPERATIONAL, FinetuneConfig.model_fields, "finetune")
