"""The manifest of annotations: which runs are resumed and which are refused, and the work of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest

from pipeline.base.config import AnnotateConfig, CorpusConfig, MethodConfig, RayConfig
from pipeline.base.cost import ModelShape
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.records import Cost, PhaseWork
from pipeline.corpus.files import CorpusFile
from pipeline.finetuning.checkpoints import run_identity
from pipeline.storage import manifest
from pipeline.storage.counts import Counts
from pipeline.storage.manifest import ManifestError, Session, begin, read_finished, read_manifest
from pipeline.storage.row_files import ROWS, write_rows
from tools_service.base.staged_models import StagedManifest, staged_name, staging_root
from tools_service.config import CalendarConfig, ToolsConfig
from tools_service.contract.settings import Deployment, ToolSettings
from tools_service.contract.spec import ToolSpec

pytestmark = pytest.mark.unit

FILES = [
    CorpusFile("pages/a.jsonl", "/pages/a.jsonl", "", 100),
    CorpusFile("pages/b.jsonl", "/pages/b.jsonl", "", None),
]
CONFIG = AnnotateConfig(
    corpus=CorpusConfig(paths=("pages",)), method=MethodConfig(tools=("QA", "Calculator"))
)


def begun(folder: Path, config: AnnotateConfig = CONFIG, files: list[CorpusFile] = FILES) -> None:
    begin(folder, config, files).with_session(Session(started="2023-01-30T10:00:00+00:00")).write(folder)


def test_a_run_goes_on_with_what_it_began(tmp_path: Path) -> None:
    begun(tmp_path)
    begun(
        tmp_path,
        CONFIG.model_copy(
            update={
                "ray": RayConfig(actors=7),
                "tools": ToolsConfig(calculator=ToolSettings(deployment=Deployment(cpus=3))),
            }
        ),
    )
    manifest = read_manifest(tmp_path)
    assert manifest.state == "unfinished"
    assert len(manifest.sessions) == 2
    assert manifest.config.ray.actors == 7
    assert manifest.versions["ray"] == "2.60.0"


def test_another_configuration_is_refused_by_the_names_of_its_fields(tmp_path: Path) -> None:
    begun(tmp_path)
    calculator = CONFIG.method.calculator.model_copy(update={"k": 5})
    method = CONFIG.method.model_copy(update={"calculator": calculator, "seed": 1})
    other = CONFIG.model_copy(
        update={"method": method, "tools": ToolsConfig(calendar=CalendarConfig(today=True))}
    )
    with pytest.raises(ManifestError) as refused:
        begin(tmp_path, other, FILES)
    assert (
        "Different: method.calculator.k: 20 → 5; method.seed: 0 → 1; tools.calendar.today: False → True"
        in str(refused.value)
    )


def test_another_commit_of_a_staged_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    model = CONFIG.model.model_copy(update={"path": "EleutherAI/gpt-j-6b"})
    config = CONFIG.model_copy(update={"model": model})

    for name in ("from the hub", "staged"):
        (tmp_path / name).mkdir()

    def stage(commit: str) -> None:
        folder = staging_root() / staged_name(model.path)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = StagedManifest(
            versions={}, created="", source=model.path, revision=None, commit=commit, pickled=(), files=()
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())

    begun(tmp_path / "from the hub", config)
    assert read_manifest(tmp_path / "from the hub").commit is None
    stage("f98c709")
    begun(tmp_path / "from the hub", config)  # what it began with is not known
    begun(tmp_path / "staged", config)
    begun(tmp_path / "staged", config)
    assert read_manifest(tmp_path / "staged").commit == "f98c709"
    stage("47e1693")
    for folder in ("from the hub", "staged"):
        with pytest.raises(
            ManifestError, match=r"the commit of model.path = EleutherAI/gpt-j-6b: f98c709 → 47e1693"
        ):
            begin(tmp_path / folder, config, FILES)


def test_a_run_of_an_earlier_version_is_resumed_and_its_work_is_read(tmp_path: Path) -> None:
    """Earlier names: recipe, batch_tokens, least and seen."""
    work = (PhaseWork("QA", "decode", Cost(8, 0, 40, 10), Cost(10, 2, 60, 10)),)
    counts = Counts(texts=1, status={}, reasons={}, calls=0, token_forwards=10, work=work, tools={})
    current = begin(tmp_path, CONFIG, FILES).model_copy(update={"counts": counts})
    current.write(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_text()
    for new, old in {
        "config": "recipe",
        "max_batch_tokens": "batch_tokens",
        "lower_bound": "least",
        "attention_pairs": "seen",
    }.items():
        assert f'"{new}":' in content
        content = content.replace(f'"{new}":', f'"{old}":')
    path.write_text(content)
    assert read_manifest(tmp_path) == current
    assert begin(tmp_path, CONFIG, FILES).counts == counts
    other = CONFIG.model_copy(update={"method": CONFIG.method.model_copy(update={"seed": 1})})
    with pytest.raises(ManifestError, match=r"Different: method\.seed: 0 → 1"):
        begin(tmp_path, other, FILES)


def test_declared_tools_are_compared_by_name_and_without_what_no_row_depends_on(tmp_path: Path) -> None:
    def config(**keys: Any) -> AnnotateConfig:
        spec = ToolSpec(name="Units", **{"implementation": "tests.tools_service.own_tools:convert", **keys})
        return AnnotateConfig(tools=ToolsConfig(declared=(spec,)))

    begun(tmp_path, config())
    begin(tmp_path, config(settings={"deployment": {"deadline_s": 5.0}}), FILES)
    with pytest.raises(ManifestError) as refused:
        begin(tmp_path, config(dated=True, k=2), FILES)
    changed = str(refused.value).partition("Different: ")[2]
    assert changed == "method.units.k: 5 → 2; tools.declared.Units.dated: False → True"


def test_changed_files_of_the_corpus_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    begin(tmp_path, CONFIG, FILES[::-1])
    with pytest.raises(ManifestError, match="the files of the corpus: 2 of None bytes → 1 of 100 bytes"):
        begin(tmp_path, CONFIG, FILES[:1])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"state": "finished"}'])
def test_something_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ManifestError, match=r"manifest\.json: not a manifest"):
        begin(tmp_path, CONFIG, FILES)


def test_rows_without_a_manifest_are_refused(tmp_path: Path) -> None:
    (tmp_path / ROWS).mkdir()
    (tmp_path / ROWS / "0.parquet").write_bytes(b"")
    with pytest.raises(ManifestError, match="there are rows but no"):
        begin(tmp_path, CONFIG, FILES)


def test_what_was_run_is_compared_with_the_least_and_with_the_time(tmp_path: Path) -> None:
    shape = ModelShape(parameters=100, layers=2, heads=2, head_size=5, hidden=10, vocabulary=30)
    work = (
        PhaseWork("QA", "decode", Cost(8, 0, 40, 10), Cost(10, 2, 60, 10)),
        PhaseWork("QA", "plus", Cost(0), Cost(0)),
        PhaseWork(None, "empty", Cost(8), Cost(8)),
    )
    counts = Counts(texts=1, status={}, reasons={}, calls=0, token_forwards=18, work=work, tools={})
    ended = Session(started="2023-01-30T10:00:00+00:00", finished="2023-01-30T10:00:02+00:00", wall_s=2.0)
    manifest = begin(tmp_path, CONFIG, FILES).with_session(ended)
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

    check(manifest.OPERATIONAL, AnnotateConfig.model_fields, "annotate")
    for tool in CONFIG.tools.specs:
        settings = CONFIG.tools.of(tool)
        check(settings.OPERATIONAL, type(settings).model_fields, f"tools.{tool}")
    check(run_identity._OPERATIONAL, FinetuneConfig.model_fields, "finetune")


BAD_BYTES = {
    "nothing": b"",
    "blank": b"\n \n",
    "half": b'{"state": "finished", "con',
    "text": b"years of work",
    "not UTF-8": b'{"state": "\xff"}',
    "UTF-16": '{"state": 1}'.encode("utf-16"),
    "zeros": b"\0" * 100,
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a string": b'"finished"',
    "NaN": b"NaN",
    "60 MB": b'{"state": "' + b"x" * 60_000_000 + b'"}',
    "too long": b" " * (65 * 2**20),
    "two objects": b"{}{}",
}


def _without(name: str) -> Any:
    return lambda content: {key: value for key, value in content.items() if key != name}


def _with(**changes: Any) -> Any:
    return lambda content: content | changes


BAD_FIELDS = {
    **{f"no {name}": _without(name) for name in ("state", "config", "versions", "corpus", "sessions")},
    "another state": _with(state="done"),
    "sessions of another type": _with(sessions=3),
    "a session without a start": _with(sessions=[{}]),
    "versions as a list": _with(versions=[1]),
    "a field of a later version": _with(colour="red"),
    "counts as a list": _with(counts=[1]),
    "NaN texts": _with(counts={"texts": float("nan")}),
    "a NaN in a session": _with(sessions=[{"started": "2023", "wall_s": float("nan")}]),
    "an infinite session": _with(sessions=[{"started": "2023", "wall_s": float("inf")}]),
    "hundreds of problems": _with(sessions=[{"x": 1}] * 300),
    "config of another type": _with(config="demo"),
    "config with hundreds of fields": _with(config={f"field_{n}": n for n in range(300)}),
}


@pytest.mark.parametrize("kind", [*BAD_BYTES, *BAD_FIELDS, "a folder"])
def test_a_damaged_manifest_is_one_sentence_that_names_it(tmp_path: Path, kind: str) -> None:
    begun(tmp_path)
    path = tmp_path / "manifest.json"
    if kind in BAD_BYTES:
        path.write_bytes(BAD_BYTES[kind])
    elif kind in BAD_FIELDS:
        path.write_text(json.dumps(BAD_FIELDS[kind](json.loads(path.read_text()))))
    else:
        path.unlink()
        path.mkdir()
    for read in (read_manifest, read_finished, lambda folder: begin(folder, CONFIG, FILES)):
        with pytest.raises(ManifestError, match=r"manifest\.json: not a manifest of this version") as refused:
            read(tmp_path)
        message = str(refused.value)
        assert len(message) < 600
        assert "\n" not in message
        assert "pydantic" not in message


@pytest.mark.parametrize(("texts", "rows"), [(3, 2), (3, 0), (0, 1), (2, 3), (10**12, 3)])
def test_a_finished_run_has_all_of_its_rows(tmp_path: Path, texts: int, rows: int) -> None:
    counts = Counts(texts=texts, status={}, reasons={}, calls=0, token_forwards=0, tools={})
    finished = begin(tmp_path, CONFIG, FILES).model_copy(update={"state": "finished", "counts": counts})
    finished.write(tmp_path)
    if rows:
        write_rows_of(tmp_path, rows)
    with pytest.raises(ManifestError, match=rf"finished with {texts} texts, but .*rows has {rows} rows"):
        read_finished(tmp_path)
    whole = finished.model_copy(update={"counts": counts.model_copy(update={"texts": rows})})
    whole.write(tmp_path)
    assert read_finished(tmp_path) == whole
    whole.model_copy(update={"counts": None}).write(tmp_path)
    with pytest.raises(ManifestError, match="without counts"):
        read_finished(tmp_path)


def write_rows_of(folder: Path, number: int) -> None:
    (folder / ROWS).mkdir()
    for text_id in range(number):
        write_rows(folder / ROWS, pa.table({"text_id": pa.array([text_id], pa.int64())}))
