"""Fine-tuning as a run: what it refuses, what it leaves, what happens when processes die."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
)

from pipeline.base.config import ModelConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.engine.errors import ModelError
from pipeline.engine.limits import position_embeddings
from pipeline.engine.loading import load_causal_lm
from pipeline.finetuning.checkpoints.run_folder import PublishError, RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from pipeline.finetuning.data.token_store import TokenStore
from pipeline.finetuning.errors import CheckpointError
from pipeline.finetuning.run import FinetuningError, _fit, finetune
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, MetricsLog, without_measures
from pipeline.storage.lock import OutputInUseError, exclusive_lock
from tests.pipeline.finetuning.inputs import (
    base_model,
    configuration,
    load_examples,
    mean_loss,
    plain_torch,
    rows,
    write,
)
from tools_service.base.errors import ConfigurationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuning")
    base_model(folder / "base")
    write(folder / "augmented", [rows(20), rows(30)[20:]])
    return folder


BEST = HeldOutEvaluation(2, 1.5, 10)


VALUES: dict[str, Any] = {"versions": {}, "created": "", "texts": {}, "best": BEST, "wall_s": 0.0}


def begun(config: FinetuneConfig) -> RunFolder:
    """A run with one checkpoint, as a killed start leaves it; its model is the one to start from."""
    run = RunFolder(config.output)
    run.path.mkdir()
    assert not run.claim(RunIdentity.of(config), force=False)
    MetricsLog(run.metrics, 0).append(BEST)
    step = run.checkpoints / "step-000002"
    (step / "state").mkdir(parents=True)
    (step / "state" / "mp_rank_00_model_states.pt").write_bytes(b"state")
    (step / "latest").write_text("state")
    shutil.copytree(config.model.path, step / "model")
    (run.checkpoints / "checkpoint_manager_snapshot.json").write_text("{}")
    (run.checkpoints / ".validate_storage_marker").touch()
    return run


def finished(config: FinetuneConfig) -> RunFolder:
    """A finished run, whose model is the one to start from."""
    run = begun(config)
    run.publish(run.checkpoints / "step-000002" / "model", RunIdentity.of(config), VALUES)
    return run


def of_earlier_version(run: RunFolder) -> None:
    """Its manifest knows the data, and neither its files nor the model to start from."""
    manifest = json.loads((run.path / "manifest.json").read_text())
    kept = {name: value for name, value in manifest.items() if name not in ("files", "model", "deepspeed")}
    (run.path / "manifest.json").write_text(json.dumps(kept))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"held_out": 23}, "30 texts leave 7 to train on with held_out = 23, fewer than batch_size = 8"),
        ({"sequence_length": 2_048}, "sequence_length = 2048"),
        ({"data": Path("nowhere")}, "no Parquet files"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    folder: Path, overrides: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        finetune(configuration(folder, **overrides))
    assert not (folder / "model").exists()


@pytest.mark.unit
def test_a_model_that_is_not_there_is_named(folder: Path) -> None:
    config = configuration(folder)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "./no/model"})})
    with pytest.raises(ConfigurationError, match=r"model\.path '\./no/model'"):
        finetune(config)


@pytest.mark.unit
def test_batches_must_divide_among_the_workers(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"batch_size = 8 is not a multiple .* 2 x 3"):
        configuration(folder, micro_batch_size=3)
    assert configuration(folder, micro_batch_size=1).accumulation == 4


@pytest.mark.unit
def test_a_finished_run_is_left_alone(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    metrics = run.metrics.read_text()
    with caplog.at_level(logging.INFO):
        result = finetune(config.model_copy(update={"max_failures": 7}))
    assert result == run.manifest()
    assert result.best == BEST
    assert run.metrics.read_text() == metrics
    assert "finished before" in caplog.text


@pytest.mark.unit
@pytest.mark.parametrize("name", ["manifest.json", "checkpoints/run.json"])
def test_a_run_of_an_earlier_version_is_recognised(folder: Path, tmp_path: Path, name: str) -> None:
    """Its files called the configuration `recipe`, and max_batch_tokens `batch_tokens`."""
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    values = json.loads((run.path / "manifest.json").read_text())
    values["recipe"] = values.pop("config")
    values["recipe"]["model"]["batch_tokens"] = values["recipe"]["model"].pop("max_batch_tokens")
    (run.path / "manifest.json").unlink()
    run.checkpoints.mkdir()
    is_finished = name == "manifest.json"
    unknown = ("files", "model", "deepspeed") if is_finished else values.keys() - {"recipe", "data"}
    kept = {key: value for key, value in values.items() if key not in unknown}
    (run.path / name).write_text(json.dumps(kept))
    assert run.claim(RunIdentity.of(config), force=False) is is_finished


@pytest.mark.unit
def test_other_settings_or_data_are_not_mixed_into_a_run(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    with pytest.raises(ConfigurationError, match=r"--force.*Different: learning_rate: 0\.001 → 0\.002$"):
        finetune(config.model_copy(update={"learning_rate": 0.002}))
    other = write(tmp_path / "augmented", [rows(30)])
    with pytest.raises(ConfigurationError, match="data: other content"):
        finetune(config.model_copy(update={"data": other}))
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        finetune(config)


@pytest.mark.unit
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_else_is_not_touched(folder: Path, tmp_path: Path, force: bool) -> None:
    mine = tmp_path / "model" / "letters.txt"
    mine.parent.mkdir()
    mine.write_text("dear")
    with pytest.raises(ConfigurationError, match="not empty"):
        finetune(configuration(folder, output=mine.parent), force=force)
    assert [path.name for path in mine.parent.iterdir()] == ["letters.txt"]


@pytest.mark.unit
def test_force_removes_a_run_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    this = RunIdentity.of(config)
    run.check(force=True)
    assert run.claim(this, force=False)
    assert not run.claim(this, force=True)
    assert {path.name for path in run.path.iterdir()} == {"checkpoints"}
    assert not run.claim(this, force=False), "begun, not finished"
    with pytest.raises(ConfigurationError, match="holds model"):
        finetune(configuration(folder, output=folder), force=True)
    with pytest.raises(ConfigurationError, match="holds data"):
        finetune(configuration(folder, output=folder / "augmented"), force=True)
    with pytest.raises(ConfigurationError, match="holds tokens"):
        finetune(config.model_copy(update={"tokens": run.path / "tokens"}))
    with pytest.raises(ConfigurationError, match=r"data = .* holds tokens"):
        finetune(config.model_copy(update={"tokens": folder / "augmented" / "tokens"}))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    os.utime(path, (1, 1))


LOST: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut": lambda folder: cut(folder / "model.safetensors"),
    "weights empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "last byte cut": lambda folder: os.truncate(
        folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1
    ),
    "weights of text": lambda folder: (folder / "model.safetensors").write_text("weights"),
    "a folder of that name": lambda folder: (
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors").mkdir(),
    ),
    "another bit": lambda folder: change_a_bit(folder / "model.safetensors"),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer empty": lambda folder: os.truncate(folder / "tokenizer.json", 0),
}


@pytest.mark.unit
@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_finished_run_without_its_model_does_not_count_as_done(
    folder: Path, tmp_path: Path, lost: str, earlier: bool
) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    if earlier:
        of_earlier_version(run)
    assert finetune(config).best == BEST
    LOST[lost](run.path)
    if earlier and not lost.startswith(("no weights", "weights", "last", "a folder")):
        return  # only the weights tell by themselves
    with pytest.raises(ConfigurationError, match=r"the run finished, but .*--force"):
        finetune(config)
    with pytest.raises(ModelError, match=r"^model\.path .*cannot load it"):
        load_causal_lm(ModelConfig(path=str(run.path), dtype="float32", device="cpu"))


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["deepspeed", "model", "data"])
@pytest.mark.parametrize("is_finished", [False, True])
def test_other_contents_under_the_same_names_are_another_run(
    folder: Path, tmp_path: Path, kind: str, is_finished: bool
) -> None:
    settings = tmp_path / "deepspeed.json"
    settings.write_text('{"gradient_clipping": 1.0}')
    base = shutil.copytree(folder / "base", tmp_path / "base")
    data = shutil.copytree(folder / "augmented", tmp_path / "augmented")
    model = configuration(folder).model.model_copy(update={"path": str(base)})
    config = configuration(folder, output=tmp_path / "model", deepspeed=settings, data=data, model=model)
    run = (finished if is_finished else begun)(config)
    assert run.claim(RunIdentity.of(config), force=False) is is_finished
    settings.write_text(json.dumps(json.loads(settings.read_text()), indent=4))
    assert run.claim(RunIdentity.of(config), force=False) is is_finished, "the same settings"
    if kind == "deepspeed":
        settings.write_text('{"gradient_clipping": 0.5}')
    elif kind == "model":
        change_a_bit(base / "model.safetensors")
    else:
        (data / "part-00001.parquet").unlink()
    with pytest.raises(ConfigurationError, match=rf"--force.*Different: {kind}: other content$"):
        run.claim(RunIdentity.of(config), force=False)


@pytest.mark.unit
def test_nothing_of_a_finished_run_is_left_but_its_result(folder: Path, tmp_path: Path) -> None:
    """The checkpoints that a start leaves that is killed after manifest.json go with the next."""
    config = configuration(folder, output=tmp_path / "model")
    run = begun(config)
    left = shutil.copytree(run.checkpoints, tmp_path / "left")
    run.publish(run.checkpoints / "step-000002" / "model", RunIdentity.of(config), VALUES)
    result = {path.name for path in run.path.iterdir()}
    assert "model.safetensors" in result
    assert "checkpoints" not in result
    shutil.copytree(left, run.checkpoints)
    assert finetune(config).best == BEST
    assert {path.name for path in run.path.iterdir()} - {".lock"} == result | {"README.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "left"}


@pytest.mark.unit
def test_the_files_of_the_result_have_the_mode_that_the_umask_gives(folder: Path, tmp_path: Path) -> None:
    """safetensors leaves 0600, in checkpoints of earlier versions too."""
    config = configuration(folder, output=tmp_path / "model")
    run = begun(config)
    model = run.checkpoints / "step-000002" / "model"
    (model / "model.safetensors").chmod(0o600)
    before = os.umask(0o022)
    try:
        run.publish(model, RunIdentity.of(config), VALUES)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in run.path.iterdir() if path.is_file()}
    assert "model.safetensors" in modes
    assert modes == dict.fromkeys(modes, "0o644")


@pytest.mark.unit
@pytest.mark.parametrize(
    "file", ["letters.txt", "checkpoints/letters.txt", "checkpoints/step-000002/photo.png"]
)
def test_files_of_others_stay(folder: Path, tmp_path: Path, file: str) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = begun(config)
    mine = run.path / file
    mine.write_text("dear")
    run.check()
    with pytest.raises(ConfigurationError, match=r"letters\.txt|photo\.png"):
        finetune(config, force=True)
    assert (run.checkpoints / "run.json").exists(), "nothing was removed"
    run.publish(run.checkpoints / "step-000002" / "model", RunIdentity.of(config), VALUES)
    assert mine.read_text() == "dear"
    assert finetune(config).best == BEST


@pytest.mark.unit
@pytest.mark.parametrize("files", [[], ["checkpoints/"], ["checkpoints/run.json.part"], [".lock"]])
def test_a_start_that_was_killed_at_once_can_be_repeated(
    folder: Path, tmp_path: Path, files: list[str]
) -> None:
    run = RunFolder(tmp_path / "model")
    run.path.mkdir()
    for name in files:
        path = run.path / name
        (path if name.endswith("/") else path.parent).mkdir(exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    run.check()
    assert not run.claim(RunIdentity.of(configuration(folder, output=run.path)), force=False)


DAMAGED_FILES = [
    " ",
    "{",
    "[]",
    "null",
    "3",
    '"x"',
    '{"config": {}}',
    '{"data": "a"}',
    "[" * 100_000,
    "\x00" * 50,
]


@pytest.mark.unit
@pytest.mark.parametrize("content", DAMAGED_FILES)
@pytest.mark.parametrize("name", ["manifest.json", "checkpoints/run.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = (finished if name == "manifest.json" else begun)(config)
    (run.path / name).write_text(content + "\n")
    with pytest.raises(ConfigurationError, match=r"\.json") as caught:
        finetune(config)
    assert str(run.path) in str(caught.value)
    assert str(caught.value).count("\n") < 3
    assert run.metrics.exists(), "nothing is removed"


@pytest.mark.unit
def test_only_one_run_writes_to_an_output(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model")
    for force in (False, True):
        with exclusive_lock(config.output), pytest.raises(OutputInUseError, match="process"):
            finetune(config, force=force)


def nan(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][1] = torch.nan


def hollow(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.zeros(0)


SPOILT: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "NaN": nan,
    "empty": hollow,
    "missing": lambda weights: weights.pop("model.norm.weight"),
}


@pytest.mark.unit
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_model_that_is_not_whole_is_never_published(folder: Path, tmp_path: Path, spoilt: str) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = begun(config)
    model = run.checkpoints / "step-000002" / "model"
    weights = load_file(model / "model.safetensors")
    SPOILT[spoilt](weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PublishError, match=r"not whole, its checkpoints stay: .*model\.norm\.weight"):
        run.publish(model, RunIdentity.of(config), VALUES)
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", "metrics.jsonl"}
    assert model.exists()


@pytest.mark.unit
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_model_that_is_not_whole_is_not_trained(folder: Path, tmp_path: Path, spoilt: str) -> None:
    base = shutil.copytree(folder / "base", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    SPOILT[spoilt](weights)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    model = configuration(folder).model.model_copy(update={"path": str(base)})
    with pytest.raises(ConfigurationError, match=r"^model\.path .*model\.norm\.weight"):
        finetune(configuration(folder, model=model, output=tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=96), 96),
        (MptConfig(max_seq_len=80), 80),
        (GPTNeoXConfig(max_position_embeddings=48), 48),
        (MistralConfig(max_position_embeddings=128, sliding_window=16), 128),
        (BloomConfig(), 2**31),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_an_example_may_be_as_long_as_the_model_has_positions(config: Any, positions: int) -> None:
    """A window in it does not matter to training."""
    assert position_embeddings(config) == positions


@pytest.mark.unit
def test_a_tokenizer_beyond_the_embeddings_is_refused(folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(folder / "base", tmp_path / "base")
    words = AutoTokenizer.from_pretrained(base)
    embeddings = AutoModelForCausalLM.from_pretrained(base).config.vocab_size
    words.add_tokens([f"<more{n}>" for n in range(1 + embeddings - len(words))])
    words.save_pretrained(base)
    model = configuration(folder).model.model_copy(update={"path": str(base)})
    with pytest.raises(ConfigurationError, match=f"{len(words)} tokens, the model {embeddings} embeddings"):
        finetune(configuration(folder, model=model, output=tmp_path / "model"))


@pytest.mark.unit
@pytest.mark.parametrize("field", ["data", "output", "deepspeed"])
@pytest.mark.parametrize("name", ["nul\0byte", "lone \udc80 surrogate"])
def test_a_path_that_is_none_is_named(folder: Path, field: str, name: str) -> None:
    with pytest.raises((ConfigurationError, ValidationError), match=field):
        finetune(configuration(folder, **{field: Path(name)}))


@pytest.mark.unit
def test_the_failure_of_a_worker_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def fail_with(error: Exception) -> Callable[[object], None]:
        def fit(_: object) -> None:
            traceback = "Traceback:\n" + "  line\n" * 90
            raise WorkerGroupError(traceback, {1: UserExceptionWithTraceback(error, traceback)})

        return fit

    run = RunIdentity.of(configuration(folder))
    monkeypatch.setattr(TorchTrainer, "fit", fail_with(CheckpointError("model.path: no weights")))
    with pytest.raises(CheckpointError, match=r"^model\.path: no weights$"):
        _fit(run, TokenStore(run.config.output))
    monkeypatch.setattr(TorchTrainer, "fit", fail_with(OSError("disk\n" * 500 + "gone")))
    with pytest.raises(FinetuningError, match=r"max_failures = 3.*gone$") as caught:
        _fit(run, TokenStore(run.config.output))
    assert "\n" not in str(caught.value)


STEPS = 40


def steps(config: FinetuneConfig) -> list[dict[str, Any]]:
    path = RunFolder(config.output).metrics
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(config: FinetuneConfig, step: int, alive: Callable[[], bool]) -> None:
    while not any(event["step"] >= step for event in steps(config)):
        assert alive(), f"the run ended before step {step}"
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_driver_and_a_killed_worker_change_nothing(
    folder: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """One run undisturbed; another whose driver is killed, and after its second start one of its workers."""
    import ray

    values = {"max_steps": STEPS, "evaluate_every": 10, "learning_rate": 1e-2}
    config = configuration(folder, output=folder / "undisturbed", **values)
    with caplog.at_level(logging.INFO):
        whole = finetune(config)
    assert sum("held-out perplexity" in record.message for record in caplog.records) == 1 + STEPS // 10
    check_result(config, whole.best)
    check_metrics_of_ray()

    disturbed = configuration(folder, output=folder / "disturbed", **values)
    code = (
        "import sys; from pipeline.base.finetune_config import FinetuneConfig; "
        "from pipeline.finetuning.run import finetune; "
        "finetune(FinetuneConfig.model_validate_json(sys.argv[1]))"
    )
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", code, disturbed.model_dump_json()],
        env=os.environ | {"RAY_ADDRESS": address},
        cwd=Path(__file__).parents[3],
    )
    try:
        wait_for_step(disturbed, 12, lambda: driver.poll() is None)
    finally:
        driver.kill()
        driver.wait()
    assert not (disturbed.output / "manifest.json").exists()

    killer = threading.Thread(target=kill_a_worker_after, args=(disturbed, 25), daemon=True)
    killer.start()
    again = finetune(disturbed)
    killer.join(timeout=1)
    assert not killer.is_alive(), "no worker was killed"
    assert list(map(without_measures, steps(disturbed))) == list(map(without_measures, steps(config)))
    taken = [event for event in steps(config) if "loss" in event]
    assert all(event["seconds"] > 0 and event["flops_per_s"] > 0 for event in taken)
    check_curves(disturbed)
    assert (again.best, again.texts) == (whole.best, whole.texts)
    assert finetune(disturbed) == again


def check_curves(config: FinetuneConfig) -> None:
    """TensorBoard's files have the values of metrics.jsonl, each step once, also after restarts."""
    read = EventAccumulator(str(config.output / "tensorboard"), purge_orphaned_data=False)
    read.Reload()
    for name, group in (("loss", "train"), ("perplexity", "held_out")):
        expected = [(event["step"], event[name]) for event in steps(config) if name in event]
        found = [(event.step, event.value) for event in read.Scalars(f"{group}/{name}")]
        assert found == [(step, pytest.approx(value)) for step, value in expected]


def check_metrics_of_ray() -> None:
    """The first worker's gauges are on the endpoint of its node."""
    import ray

    [node] = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    for _ in range(40):
        with urllib.request.urlopen(url, timeout=10) as response:
            if "ray_toolformer_training_tokens_per_s" in response.read().decode():
                return
        time.sleep(0.5)
    raise AssertionError("no gauge of the training after 20 s")


def kill_a_worker_after(config: FinetuneConfig, step: int) -> None:
    wait_for_step(config, step, lambda: True)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
    max(workers, key=lambda p: p.create_time()).kill()


def check_result(config: FinetuneConfig, best: HeldOutEvaluation) -> None:
    """Two workers took the steps of plain torch, and the best of them is the folder's model."""
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    data = load_examples(config, tokenizer)
    losses, norms, _ = plain_torch(config, data, 4)
    events = steps(config)
    taken = [event for event in events if "loss" in event]
    assert [event["loss"] for event in taken[:4]] == pytest.approx(losses, abs=1e-4)
    assert [event["gradient_norm"] for event in taken[:4]] == pytest.approx(norms, rel=1e-3)
    evaluations = [event["held_out_loss"] for event in events if "held_out_loss" in event]
    assert best.held_out_loss == min(evaluations[1:]) < evaluations[0]
    model = AutoModelForCausalLM.from_pretrained(config.output)
    with torch.no_grad():
        loss = mean_loss(model, data.held_out, range(len(data.held_out)))
    assert best.held_out_loss == pytest.approx(float(loss), abs=1e-5)
    manifest = RunFolder(config.output).manifest()
    assert (manifest.best, manifest.texts["trained_on"] + manifest.texts["held_out"]) == (best, 30)
    assert not RunFolder(config.output).checkpoints.exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"tokens": "augmented/tokens"}, r"data = .* holds tokens"),
        ({"storage": "augmented/checkpoints"}, r"data = .* holds storage"),
        ({"tokens": "augmented/manifest.json"}, r"data = .* holds tokens"),
        ({"tokens": "base/config.json"}, r"tokens = .* is a file"),
        ({"storage": "base/config.json"}, r"storage = .* is a file"),
    ],
)
def test_folders_that_would_mix_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, overrides: dict[str, str], words: str
) -> None:
    paths = {name: folder / value for name, value in overrides.items()}
    values: dict[str, Any] = {n: str(p) if n == "storage" else p for n, p in paths.items()}
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigurationError, match=words):
        finetune(configuration(folder, output=tmp_path / "model", **values))
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "model").exists()


@pytest.mark.unit
def test_a_uri_without_its_slashes_is_no_folder(folder: Path) -> None:
    with pytest.raises(ValidationError, match="looks like a URI"):
        configuration(folder, storage="s3:/bucket/path")
