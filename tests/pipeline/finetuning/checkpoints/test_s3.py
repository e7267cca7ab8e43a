"""A run whose checkpoints are in an object store, a real S3 server on loopback; none of it stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow.fs import FileSelector, S3FileSystem

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.checkpoints.checkpoint_storage import CheckpointStorage
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.watching.metrics_log import without_measures
from tests.pipeline.finetuning.inputs import base_model, configuration, rows, write
from tools_service.base.errors import ConfigurationError

CODE = (
    "import sys; from pipeline.base.finetune_config import FinetuneConfig; "
    "from pipeline.finetuning.run import finetune; "
    "finetune(FinetuneConfig.model_validate_json(sys.argv[1]))"
)
STEPS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """host:port of an S3 server with the bucket `runs`."""
    from moto.server import ThreadedMotoServer

    variables = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        connection(f"{host}:{port}").create_dir("runs")
        yield f"{host}:{port}"
        server.stop()


def connection(server: str) -> S3FileSystem:
    return S3FileSystem(
        endpoint_override=server, scheme="http", region="us-east-1", allow_bucket_creation=True
    )


def uri(server: str, path: str = "runs/models") -> str:
    return f"s3://{path}?endpoint_override={server}&scheme=http"


def stored(server: str) -> list[str]:
    """All files in the bucket, without the marker of the folder."""
    infos = connection(server).get_file_info(FileSelector("runs", recursive=True))
    return sorted(info.path for info in infos if info.is_file)


@pytest.mark.unit
def test_a_folder_of_the_store_is_read_written_and_removed(server: str, tmp_path: Path) -> None:
    storage = CheckpointStorage.of(uri(server), "model-1")
    other = CheckpointStorage.of(uri(server), "model-2")
    assert not storage.is_shared_folder
    storage.require_writable()
    assert stored(server) == []
    assert storage.repair_index() == 0
    with pytest.raises(FileNotFoundError):
        storage.read("run.json")
    for each in (storage, other):
        each.write("run.json", each.name)
        each.write("step-000004/state/a.pt", "a")
        each.write("step-000004/state/b.pt", "b")
    checkpoint = f"{storage.folder}/step-000004/state"
    storage.download(checkpoint, tmp_path, ["b.pt"])
    assert [path.name for path in tmp_path.iterdir()] == ["b.pt"]
    storage.download(checkpoint, tmp_path)
    assert (tmp_path / "a.pt").read_text() == "a"
    storage.remove_checkpoint("step-000004")
    storage.remove_checkpoint("step-000004")
    assert stored(server) == [
        "runs/models/model-1/run.json",
        "runs/models/model-2/run.json",
        "runs/models/model-2/step-000004/state/a.pt",
        "runs/models/model-2/step-000004/state/b.pt",
    ]
    storage.remove()
    other.remove()
    assert stored(server) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("s3://nowhere/models?endpoint_override={server}&scheme=http", "NO_SUCH_BUCKET"),
        ("s3://runs/models?endpoint_override=127.0.0.1:9&scheme=http", "127.0.0.1 port 9|connect to server"),
        ("s4://runs/models", "s4"),
        ("s3://someone:secret@runs/models", "password"),
        ("/proc/models", "/proc/models"),
    ],
)
def test_storage_that_cannot_be_written_is_one_sentence(server: str, storage: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        CheckpointStorage.of(storage.format(server=server), "model").require_writable()
    message = str(caught.value)
    assert message.startswith("storage")
    assert "\n" not in message
    assert "secret" not in message.replace("AWS_SECRET", "")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For sockets of Ray, whose paths must be short, and for checkpoints before their upload."""
    with tempfile.TemporaryDirectory(prefix="s3", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(config: FinetuneConfig, folder: Path) -> subprocess.Popen[bytes]:
    """A driver with a cluster of its own; both end with it."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    variables.pop("RAY_ADDRESS", None)
    log = (folder / "driver.log").open("w")
    command = [sys.executable, "-c", CODE, config.model_dump_json()]
    root = Path(__file__).parents[4]
    return subprocess.Popen(command, env=variables, cwd=root, stdout=log, stderr=log)


def finish(driver: subprocess.Popen[bytes], folder: Path) -> None:
    assert driver.wait() == 0, (folder / "driver.log").read_text()[-2_000:]


def events(config: FinetuneConfig) -> list[dict[str, Any]]:
    path = RunFolder(config.output).metrics
    lines = path.read_text().splitlines() if path.exists() else []
    return [without_measures(json.loads(line)) for line in lines]


def kill_after(driver: subprocess.Popen[bytes], folder: Path, reached: Callable[[], bool]) -> None:
    """SIGKILL to the driver; returns when its cluster is gone, too."""
    while not reached():
        assert driver.poll() is None, (folder / "driver.log").read_text()[-2_000:]
        time.sleep(0.05)
    cluster = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    for process in psutil.wait_procs(cluster, timeout=30)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_run_resumes_from_the_store_and_goes_on_with_another_worker(
    server: str, tmp_path: Path, short_folder: Path, ray_cluster: None
) -> None:
    """Undisturbed on a disk; killed, and resumed from S3; then to more steps, on one worker."""
    from pipeline.finetuning.run import finetune

    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(30)])
    values = {"max_steps": STEPS, "evaluate_every": 4, "learning_rate": 1e-2}
    more = {"max_steps": STEPS + 3, "workers": 1, "micro_batch_size": 4}
    whole = configuration(tmp_path, output=tmp_path / "whole", keep_state=True, **values)
    best = finetune(whole).best

    config = configuration(
        tmp_path, output=tmp_path / "stored", keep_state=True, storage=uri(server), **values
    )
    driver = start(config, short_folder)
    kill_after(driver, short_folder, lambda: any(event["step"] == 6 for event in events(config)))
    assert any("step-000004/state" in name for name in stored(server))
    finish(start(config, short_folder), short_folder)
    assert events(config) == events(whole)
    assert RunFolder(config.output).manifest().best == best
    weights = [(each.output / "model.safetensors").read_bytes() for each in (config, whole)]
    assert weights[0] == weights[1]
    kept = {name.split("/")[3] for name in stored(server) if "/step-" in name}
    assert kept == {f"step-{STEPS:06d}", f"step-{best.step:06d}"}

    finish(start(config.model_copy(update=more | {"keep_state": False}), short_folder), short_folder)
    again = finetune(whole.model_copy(update=more | {"workers": 2, "micro_batch_size": 2}))
    losses = [[e["loss"] for e in events(each) if "loss" in e] for each in (config, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert len(losses[0]) == STEPS + 3
    rates = [event["learning_rate"] for event in events(config) if "loss" in event]
    assert rates == [5e-3, *[1e-2] * (STEPS + 2)], "ceil(12 x 0.1) steps of warm-up, as at the first start"
    assert again.config.max_steps == STEPS + 3
    assert stored(server) == []
    assert [path.name for path in short_folder.glob("toolformer*")] == []
    assert not RunFolder(config.output).checkpoints.exists()
