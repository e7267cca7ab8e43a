"""What may change between two starts of a run: workers, micro-batches, the number of steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from pipeline.finetuning.checkpoints.worker_checkpoints import steps_to_remove
from pipeline.finetuning.evaluation.choice import best_of
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, MetricsLog
from tests.pipeline.finetuning.inputs import base_model, configuration, rows, write
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

INDEX = "checkpoint_manager_snapshot.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continuing")
    base_model(folder / "base")
    write(folder / "augmented", [rows(30)])
    return folder


def claim(config: FinetuneConfig, *, force: bool = False) -> bool:
    folder = RunFolder(config.output)
    folder.check(force=force)
    return folder.claim(RunIdentity.of(config), force=force)


def begin(config: FinetuneConfig, steps: tuple[int, ...] = (2, 4)) -> RunFolder:
    """A run with checkpoints after `steps`, as a killed start leaves it."""
    run = RunFolder(config.output)
    run.path.mkdir()
    assert not claim(config)
    MetricsLog(run.metrics, 0).append(HeldOutEvaluation(steps[-1], 1.5, 10))
    checkpoints = Path(run.begun().storage.folder)
    results = [{"checkpoint_dir_name": f"step-{step:06d}", "metrics": {"step": step}} for step in steps]
    for result in results:
        (checkpoints / result["checkpoint_dir_name"] / "state").mkdir(parents=True)
        shutil.copytree(config.model.path, checkpoints / result["checkpoint_dir_name"] / "model")
    index = {
        "checkpoint_results": results[::-1],
        "checkpoint_report_indices": list(range(len(steps)))[::-1],
        "latest_checkpoint_result": results[-1],
    }
    (checkpoints / INDEX).write_text(json.dumps(index))
    return run


def finish(config: FinetuneConfig) -> RunFolder:
    run = begin(config)
    best = HeldOutEvaluation(4, 1.5, 10)
    values: dict[str, Any] = {"versions": {}, "created": "", "texts": {}, "best": best, "wall_s": 0.0}
    begun = run.begun()
    run.publish(run.fetch_model(begun, 4), begun, values)
    return run


def changed(config: FinetuneConfig, **values: Any) -> FinetuneConfig:
    return config.model_copy(update=values)


def test_workers_and_micro_batches_may_change_and_the_stage_may_not(folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "deepspeed.json"
    settings.write_text('{"gradient_clipping": 1.0}')
    config = configuration(folder, output=tmp_path / "model", deepspeed=settings)
    begin(config)
    assert not claim(changed(config, workers=1, micro_batch_size=8))
    assert RunFolder(config.output).begun().config.workers == 1
    with pytest.raises(ConfigurationError, match="zero_stage: 2 → 3"):
        claim(changed(config, zero_stage=3))
    settings.write_text('{"gradient_clipping": 0.5}')
    with pytest.raises(ConfigurationError, match="deepspeed: other content"):
        claim(changed(config, workers=1, micro_batch_size=8))


def test_a_run_of_an_earlier_version_keeps_its_settings_and_its_warm_up(folder: Path, tmp_path: Path) -> None:
    """Its digest of the settings had the sizes in it, run.json no number of steps; it chose by the loss."""
    settings = tmp_path / "deepspeed.json"
    settings.write_text('{"gradient_clipping": 0.5}')
    config = configuration(folder, output=tmp_path / "model", deepspeed=settings, max_steps=40)
    run = begin(config)
    path = run.checkpoints / "run.json"
    values = json.loads(path.read_text())
    del values["warmup_steps"], values["checkpoint_folder"], values["config"]["select_by"]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match="deepspeed: other content"):
        claim(config)
    path.write_text(json.dumps(values | {"deepspeed": "5d42128fa79c5ee166c5ea515c357787"}))
    assert run.begun().config.select_by == "loss"
    assert not claim(changed(config, max_steps=80))
    assert run.begun().warmup_steps == 4
    assert run.begun().deepspeed == RunIdentity.of(config).deepspeed
    assert not claim(config)


def test_an_unfinished_run_may_get_more_steps_or_fewer_than_it_had_but_none_that_are_taken(
    folder: Path, tmp_path: Path
) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=40)
    run = begin(config)
    for steps in (100, 5, 4):
        assert not claim(changed(config, max_steps=steps))
        assert (run.begun().config.max_steps, run.begun().warmup_steps) == (steps, 4)
    with pytest.raises(ConfigurationError, match=r"max_steps = 3, but the run in .* has taken 4 steps"):
        claim(changed(config, max_steps=3))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_steps_of_a_schedule_that_falls_are_fixed(folder: Path, tmp_path: Path, schedule: str) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=40, schedule=schedule)
    begin(config)
    assert not claim(config)
    with pytest.raises(ConfigurationError, match="max_steps: 40 → 80"):
        claim(changed(config, max_steps=80))


def test_a_finished_run_goes_on_if_its_state_was_kept(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=4, keep_state=True)
    run = finish(config)
    manifest = run.manifest()
    assert claim(config)
    assert claim(changed(config, keep_state=False)), "not removed silently"
    assert (run.checkpoints / "step-000004" / "state").is_dir()
    assert not claim(changed(config, max_steps=8))
    assert run.manifest() == manifest, "the old result stays"
    assert claim(config), "and can be had"
    assert not isinstance(run.identity(), type(manifest))
    assert run.identity().config.max_steps == 8
    with pytest.raises(ConfigurationError, match=r"max_steps = 2, but the run in .* finished with 4"):
        claim(changed(config, max_steps=2))
    values = {name: getattr(manifest, name) for name in ("versions", "created", "texts", "best", "wall_s")}
    begun = run.begun()
    run.publish(run.fetch_model(begun, 4), begun, values)
    assert run.manifest().config.max_steps == 8
    assert claim(changed(config, max_steps=8))
    assert not claim(config, force=True)


def test_a_finished_run_without_its_state_names_the_option(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=4)
    run = finish(config)
    with pytest.raises(ConfigurationError, match=r"max_steps = 8: .* with 4 and without keep_state"):
        claim(changed(config, max_steps=8, keep_state=True))
    assert not run.checkpoints.exists()


def test_a_checkpoint_that_is_gone_is_not_in_the_list_any_more(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=40)
    run = begin(config, (2, 4, 6))
    index = run.checkpoints / INDEX

    def listed() -> list[str]:
        return [
            result["checkpoint_dir_name"] for result in json.loads(index.read_text())["checkpoint_results"]
        ]

    shutil.rmtree(run.checkpoints / "step-000002")
    assert run.begun().storage.repair_index() == 6
    assert listed() == ["step-000006", "step-000004"]
    shutil.rmtree(run.checkpoints / "step-000006")
    assert run.begun().storage.repair_index() == 4
    values = json.loads(index.read_text())
    assert values["latest_checkpoint_result"]["checkpoint_dir_name"] == "step-000004"
    assert values["checkpoint_report_indices"] == [1]
    shutil.rmtree(run.checkpoints / "step-000004")
    assert run.begun().storage.repair_index() == 0


def test_runs_that_share_a_storage_have_folders_of_their_own(folder: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    configs = [
        configuration(folder, output=tmp_path / name / "model", storage=str(storage), max_steps=40)
        for name in ("a", "b")
    ]
    for config in configs:
        config.output.parent.mkdir()
    runs = [begin(config) for config in configs]
    folders = [Path(run.begun().storage.folder) for run in runs]
    assert sorted(storage.iterdir()) == sorted(folders)
    assert len({*folders}) == 2
    with pytest.raises(ConfigurationError, match="storage: "):
        claim(changed(configs[0], storage=str(tmp_path)))
    (folders[0] / "letter.txt").write_text("dear")
    assert not claim(configs[0], force=True)
    assert (folders[0] / "letter.txt").exists(), "not ours"
    assert not claim(configs[1], force=True)
    assert not folders[1].exists()


def test_a_copy_of_a_run_does_not_use_the_checkpoints_of_the_original(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model", storage=str(tmp_path / "storage"))
    run = begin(config)
    stored = Path(run.begun().storage.folder)
    copy = changed(config, output=tmp_path / "copy")
    shutil.copytree(config.output, copy.output)
    with pytest.raises(ConfigurationError, match=r"copy is a copy of .*model, whose checkpoints"):
        claim(copy)
    assert not claim(copy, force=True)
    assert (stored / "step-000004" / "state").is_dir()
    assert not claim(config)
    moved = changed(config, output=tmp_path / "moved")
    config.output.rename(moved.output)
    assert not claim(moved), "not a copy"


@pytest.mark.parametrize(
    ("latest", "removed"), [(1, {2, 6, 8}), (2, {2, 6}), (3, {2}), (4, {2}), (5, set()), (9, set())]
)
def test_the_latest_checkpoints_and_the_best_are_kept(latest: int, removed: set[int]) -> None:
    losses = {2: 3.0, 4: 1.0, 6: 1.5, 8: 1.25, 10: 2.0}
    evaluations = [HeldOutEvaluation(step, loss, 10) for step, loss in losses.items()]
    assert steps_to_remove(evaluations[::-1], latest, "loss") == removed


def test_of_equal_evaluations_the_first_is_the_best() -> None:
    evaluations = [HeldOutEvaluation(step, loss, 10) for step, loss in ((2, 1.5), (8, 1.25), (4, 1.25))]
    best = best_of(evaluations, "loss")
    assert best is not None
    assert best.step == 4


def test_force_removes_nothing_before_the_new_storage_can_be_written(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model", max_steps=40)
    run = begin(config)
    (run.path / "README.md").write_text("my notes")
    before = set(run.path.rglob("*"))
    with pytest.raises(ConfigurationError, match="storage"):
        run.claim(RunIdentity.of(changed(config, storage="nowhere://bucket/path")), force=True)
    assert set(run.path.rglob("*")) == before


def test_a_start_that_left_only_the_card_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("my notes")
    RunFolder(tmp_path / "model").check()
    RunFolder(tmp_path / "model").check(force=True)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        RunFolder(tmp_path / "model").check()
