"""The Ray Data graph: every text once, whatever is killed, and errors that say what to do."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch

from bench.faults.disk import can_mount
from bench.fixtures import small_run as annotating
from pipeline.annotation import budget, run
from pipeline.annotation.annotator_actor import AnnotationError
from pipeline.annotation.budget import BudgetExhaustedError
from pipeline.annotation.run import annotate, needs
from pipeline.base.config import AnnotateConfig, CorpusConfig
from pipeline.cli.recipes import paper
from pipeline.corpus.files import CorpusError, list_files
from pipeline.corpus.texts import read_corpus
from pipeline.report.status import PartStatus, StatusReader
from pipeline.storage.expected_texts import PROGRESS
from pipeline.storage.kinds import ANNOTATION
from pipeline.storage.lock import OutputInUseError, exclusive_lock
from pipeline.storage.manifest import AnnotationManifest, ManifestError, read_finished, read_manifest
from pipeline.storage.row_files import ROWS, parquet_files
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.base.errors import ConfigurationError
from tools_service.contract.settings import Deployment
from tools_service.contract.tool import ToolUnavailableError
from tools_service.runtime.resources import require_machine, require_resources

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FILES, PAGES = 3, 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", FILES, PAGES)
    (folder / "pages" / "gone.jsonl").symlink_to("nowhere.jsonl")
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, world: Path) -> tuple[list[dict[str, Any]], AnnotationManifest]:
    """The rows by id and the manifest of a run that nothing happened to."""
    config = annotating.config(world, world / "undisturbed")
    manifest = annotate(config)
    return rows_of(config), manifest


def rows_of(config: AnnotateConfig) -> list[dict[str, Any]]:
    """The rows in the order of their ids, dates and all."""
    return pq.read_table(config.output / ROWS).sort_by("text_id").to_pylist()


def start(world: Path, output: Path) -> subprocess.Popen[bytes]:
    """A driver of its own that annotates on the tests' cluster."""
    code = (
        "import sys; from pathlib import Path; from pipeline.annotation.run import annotate\n"
        "from bench.fixtures import small_run as annotating\n"
        "annotate(annotating.config(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.Popen([sys.executable, "-c", code, str(world), str(output)], env=environment)


def with_model(config: AnnotateConfig, folder: Path) -> AnnotateConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(folder)})})


def wait_for_files(process: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    while len(parquet_files(folder)) < number:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)


def test_every_text_has_one_row(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    rows, manifest = undisturbed
    corpus = CorpusConfig(paths=(str(world / "pages"),))
    texts = read_corpus(list_files(corpus), corpus, TokenCounter(str(world / "model")))
    assert [(row["text_id"], row["text"]) for row in rows] == sorted((one.text_id, one.text) for one in texts)
    assert [row["text"] for row in rows if row["status"] == "skipped"] == [""] * FILES
    counts = manifest.counts
    assert counts is not None
    assert counts.texts == sum(counts.status.values()) == FILES * (PAGES + 1)
    assert counts.reasons == {"skipped": {"not JSON": FILES}}
    assert counts.tools["Calculator"].texts == FILES * PAGES
    assert counts.tools["Calendar"].kept > 0
    assert counts.calls == sum(len(row["calls"]) for row in rows)
    assert manifest.left_out == ("not read: 1 x link without a target (gone.jsonl)",)
    assert manifest.state == "finished"
    assert manifest.compute is not None
    assert manifest.compute.overhead >= 1
    assert manifest.compute.flops_per_s is not None


def status_of(config: AnnotateConfig) -> PartStatus:
    """What `status` says of the run."""
    [part] = StatusReader(config.output).read().parts
    return part


def test_a_killed_run_goes_on_and_leaves_the_same_rows(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    """The driver is killed (SIGKILL) with several files written and one in the middle of it.

    Until then, the same command started again is refused.
    """
    config = annotating.config(world, world / "killed")
    process = start(world, config.output)
    wait_for_files(process, config.output / ROWS, 1)
    with pytest.raises(OutputInUseError, match=f"process {process.pid} .* is writing here"):
        annotate(config)
    wait_for_files(process, config.output / ROWS, 4)
    assert status_of(config).state == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status = status_of(config)
    assert (status.state, status.holder and status.holder.pid) == ("stopped", process.pid)
    assert status.done >= 4
    files = parquet_files(config.output / ROWS)
    assert len(files) < FILES * (PAGES + 1) // 8, "killed too late to say anything"
    files[0].write_bytes(files[0].read_bytes()[:-9])
    assert read_manifest(config.output).state == "unfinished"
    manifest = annotate(config)
    assert rows_of(config) == undisturbed[0]
    assert manifest.counts == undisturbed[1].counts
    assert [session.finished is not None for session in manifest.sessions] == [False, True]
    assert manifest.compute is not None
    assert manifest.compute.flops_per_s is None
    assert status_of(config).state == "finished"
    assert list(ANNOTATION.foreign(config.output)) == []
    assert not (config.output / PROGRESS).exists()


def kill_the_actor(rows: Path) -> None:
    """SIGKILL to the process that annotates, when it has written several files."""
    while len(parquet_files(rows)) < 4:
        time.sleep(0.02)
    processes = psutil.Process().children(recursive=True)
    [actor] = [process for process in processes if "AnnotateBatch" in " ".join(process.cmdline())]
    actor.kill()


def test_a_killed_actor_changes_nothing(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    config = annotating.config(world, world / "actor killed")
    killer = threading.Thread(target=kill_the_actor, args=(config.output / ROWS,), daemon=True)
    killer.start()
    manifest = annotate(config)
    killer.join(timeout=1)
    assert not killer.is_alive(), "no actor was killed"
    assert rows_of(config) == undisturbed[0]
    assert manifest.counts == undisturbed[1].counts


def test_a_full_disk_stops_the_run_and_with_more_room_it_goes_on(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    if not can_mount():
        pytest.skip("no right to mount a file system that can be full")
    config = annotating.config(world, world / "small disk")
    config.output.mkdir()
    kept = sum(path.stat().st_size for path in parquet_files(world / "undisturbed" / ROWS)) // 3
    options = f"size={64 * 1024 + kept}"  # manifest, lock and log, and a part of the rows
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(config.output)], check=True)
    try:
        with pytest.raises(AnnotationError, match="No space left"):
            annotate(config)
        assert parquet_files(config.output / ROWS)
        subprocess.run(["mount", "-o", "remount,size=1G", str(config.output)], check=True)
        manifest = annotate(config)
        assert rows_of(config) == undisturbed[0]
        assert manifest.counts == undisturbed[1].counts
    finally:
        subprocess.run(["umount", "--lazy", str(config.output)], check=True)


def test_a_run_killed_after_its_last_row_finds_nothing_left_to_do(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    config = annotating.config(world, world / "killed at the end")
    shutil.copytree(world / "undisturbed" / ROWS, config.output / ROWS)
    begun = undisturbed[1].model_copy(update={"state": "unfinished", "sessions": (), "counts": None})
    begun.write(config.output)
    assert annotate(config).counts == undisturbed[1].counts
    assert rows_of(config) == undisturbed[0]


def test_an_exhausted_budget_stops_an_elastic_run_that_then_goes_on(
    world: Path,
    undisturbed: tuple[list[dict[str, Any]], AnnotationManifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that is two hours on when the second file is written; up to three actors."""
    config = annotating.config(world, world / "budget")
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"max_actors": 3})})

    def clock() -> float:
        return 7_200.0 if len(parquet_files(config.output / ROWS)) >= 2 else 0.0

    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=clock))
    with pytest.raises(
        BudgetExhaustedError, match=r"stopped: max_hours = 1 is used up\. .* the same command goes on"
    ):
        annotate(config.model_copy(update={"max_hours": 1.0}))
    rows = rows_of(config)
    assert 16 <= len(rows) < len(undisturbed[0])
    assert [row for row in undisturbed[0] if row["text_id"] in {row["text_id"] for row in rows}] == rows
    assert not list((config.output / ROWS).glob("*.part")), "batches in progress are written to their end"
    manifest = read_manifest(config.output)
    [session] = manifest.sessions
    assert (manifest.state, session.stopped, session.wall_s) == ("unfinished", "max_hours = 1", 7_200.0)
    assert session.gpu_hours == 0
    with pytest.raises(ManifestError, match="not finished; give its annotate command again"):
        read_finished(config.output)
    assert status_of(config).state == "stopped"
    monkeypatch.undo()
    manifest = annotate(config)
    assert rows_of(config) == undisturbed[0]
    assert (manifest.state, manifest.counts) == ("finished", undisturbed[1].counts)
    assert [session.stopped for session in manifest.sessions] == ["max_hours = 1", None]


def test_a_finished_run_is_left_alone(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    config = annotating.config(world, world / "undisturbed", actors=2)
    before = [path.stat().st_mtime_ns for path in parquet_files(config.output / ROWS)]
    assert annotate(config).sessions == undisturbed[1].sessions
    assert [path.stat().st_mtime_ns for path in parquet_files(config.output / ROWS)] == before


def test_a_finished_run_that_lost_rows_gets_them_back(
    world: Path, undisturbed: tuple[list[dict[str, Any]], AnnotationManifest]
) -> None:
    config = annotating.config(world, world / "lossy")
    shutil.copytree(world / "undisturbed", config.output)
    first, second, *_ = parquet_files(config.output / ROWS)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    manifest = annotate(config)
    assert rows_of(config) == undisturbed[0]
    assert (manifest.state, manifest.counts) == ("finished", undisturbed[1].counts)


def test_only_so_many_texts(ray_cluster: None, world: Path, tmp_path: Path) -> None:
    """`max_texts` counts across files, in their order."""
    config = annotating.config(world, tmp_path / "few")
    corpus = config.corpus.model_copy(update={"max_texts": PAGES + 5})
    manifest = annotate(config.model_copy(update={"corpus": corpus}))
    assert manifest.counts is not None
    assert manifest.counts.texts == PAGES + 5
    sources = [row["document"]["source"] for row in rows_of(config)]
    assert sum("0.jsonl" in source for source in sources) == PAGES + 1


def test_a_model_that_the_actors_refuse_stops_the_run(ray_cluster: None, world: Path, tmp_path: Path) -> None:
    """Its weights are read by the actors only; that they are wrong is an error of the configuration."""
    sound = annotating.annotator_model()
    broken = copy.deepcopy(sound.model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = float("nan")
    broken.save_pretrained(tmp_path / "model")
    sound.tokenizer.save_pretrained(tmp_path / "model")
    config = with_model(annotating.config(world, tmp_path / "out"), tmp_path / "model")
    with pytest.raises(ConfigurationError, match="holds NaN or infinite weights") as error:
        annotate(config)
    assert "\n" not in str(error.value)
    rows = [row for file in parquet_files(config.output / ROWS) for row in pq.read_table(file).to_pylist()]
    assert not any(row["work"] for row in rows), "rows of texts that need no model may be there"


def test_a_model_that_is_none_is_refused_before_anything_starts(world: Path, tmp_path: Path) -> None:
    annotating.annotator_model().tokenizer.save_pretrained(tmp_path / "model")
    config = with_model(annotating.config(world, tmp_path / "out"), tmp_path / "model")
    with pytest.raises(ConfigurationError, match=r"cannot load it: it has no config\.json"):
        annotate(config)
    assert not config.output.exists()


def test_a_corpus_without_a_readable_document_is_an_error(world: Path, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "0.jsonl").write_text("{broken\n[1]\n")
    config = annotating.config(world, tmp_path / "out")
    corpus = CorpusConfig(paths=(str(tmp_path / "pages"),))
    with pytest.raises(CorpusError, match="no readable document"):
        annotate(config.model_copy(update={"corpus": corpus}))
    assert not config.output.exists()


def test_tools_that_cannot_be_had_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = paper().annotate.model_copy(update={"output": tmp_path / "out"})
    with pytest.raises(ToolUnavailableError, match=r"QA has nothing to search; .*leave QA"):
        annotate(config)
    assert not config.output.exists()


TWICE = """
from ray import serve
from pipeline.runtime.connection import ray_connection
from tools_service.runtime.resources import ProcessRequest, ResourceRequest
for number in (1, 2):
    with ray_connection(ResourceRequest(processes=(ProcessRequest(of="test", cpus=1),))):
        assert serve.status().applications == {}
        if number == 1:
            serve.start(proxy_location="Disabled")
"""


def test_one_process_can_have_one_local_cluster_after_another(tmp_path: Path) -> None:
    """Serve remembers the first, which the second looks like to it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_an_output_in_use_is_refused(world: Path, tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "out"), pytest.raises(OutputInUseError):
        annotate(annotating.config(world, tmp_path / "out"))


@pytest.mark.parametrize("local", [True, False])
def test_gpus_that_the_cluster_lacks_are_not_waited_for(
    ray_cluster: None, world: Path, tmp_path: Path, local: bool
) -> None:
    config = annotating.config(world, tmp_path / "out", actors=2)

    def check(**ray: Any) -> None:
        changed = config.model_copy(update={"ray": config.ray.model_copy(update=ray)})
        (require_machine if local else require_resources)(needs(changed))

    check(wait_s=0.0)
    message = r"annotating actor needs 1 CPU and 64 GPUs .*: lower ray\.gpus_per_actor"
    with pytest.raises(ConfigurationError, match=message):
        check(gpus_per_actor=64.0, wait_s=0.0)
    if not local:
        with pytest.raises(ConfigurationError, match=r"needs 99 CPUs .*: lower ray\.cpus_per_actor"):
            check(cpus_per_actor=99.0, wait_s=0.0)
    deployment = Deployment(gpus=64.0)
    tool = config.tools.of("Calculator").model_copy(update={"deployment": deployment})
    config = config.model_copy(update={"tools": config.tools.model_copy(update={"calculator": tool})})
    message = r"Calculator replica .*: lower tools\.calculator\.deployment\.gpus"
    with pytest.raises(ConfigurationError, match=message):
        check(wait_s=0.0)
