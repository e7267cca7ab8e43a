"""The benchmark of fine-tuning: its systems do the same work, and its bars can be missed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run as run_process

import pytest

from bench.finetune import SHAPES, alternate, failures, largest_difference, parse, summary, work
from bench.finetune_systems import Steps, Workload, save_model
from pipeline.engine.loading import model_shape

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The tiny shape."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = SHAPES["tiny"]
    save_model(shape.config(), folder)
    return Workload(
        str(folder),
        shape.config().vocab_size,
        shape.sequence_length,
        shape.batch_size,
        shape.micro_batch_size,
    )


@pytest.fixture(scope="module")
def measured(workload: Workload) -> dict[str, list[Steps]]:
    """Two turns of three systems."""
    return alternate(workload, ["plain", "trainer", "zero2"], rounds=1, steps=3)


@pytest.mark.timeout(600)
def test_all_systems_have_the_same_losses(workload: Workload, measured: dict[str, list[Steps]]) -> None:
    assert [len(steps.losses) for steps in measured["trainer"]] == [3, 3]
    assert largest_difference(measured) < 1e-5
    first, second = (steps.losses[0] for steps in measured["plain"])
    assert abs(first - second) > 1e-3  # the turns go on with other batches
    for row in summary(workload, measured, 1e9, 3):
        assert row["utilisation"] > 0
        assert row["ms_per_step_cpu"] > 0


@pytest.mark.timeout(600)
def test_two_workers_have_the_losses_of_one(workload: Workload, measured: dict[str, list[Steps]]) -> None:
    together = alternate(workload, ["zero2"], rounds=0, steps=3, workers=2)
    assert largest_difference({"plain": measured["plain"], **together}) < 1e-5


def test_padding_is_not_counted_as_work(workload: Workload) -> None:
    config = workload.configuration(1, 1)
    batch = workload.batches(config).batch(1)
    tokens, flops = work(workload, 1, 1)
    assert tokens == batch.predicted_tokens + workload.batch_size
    assert tokens < sum(rows.ids.size for rows in batch.micro_batches)
    full = replace(workload, ragged=False)
    assert work(full, 1, 2)[0] == 2 * workload.batch_size * workload.sequence_length
    shape = model_shape(workload.folder)
    assert flops > 6 * shape.parameters * tokens  # and attention and logits


def test_a_missed_bar_is_named() -> None:
    def found(ours: float, difference: float) -> dict[str, object]:
        row = {"system": "zero1", "of_plain_cpu": ours, "of_trainer_cpu": ours - 0.15}
        return {
            "shape": "demo-2m",
            "workload": {"use_gpu": False},
            "largest_difference": difference,
            "one_worker": [{"system": "plain"}, row],
        }

    assert list(failures(found(1.09, 1e-6), "cpu")) == []
    assert len(list(failures(found(1.09, 1e-3), "cpu"))) == 1
    assert len(list(failures(found(1.11, float("nan")), "cpu"))) == 2
    assert len(list(failures(found(1.16, 1e-6), "cpu"))) == 2


def test_losses_are_compared_step_by_step() -> None:
    measurements = {
        name: [Steps(losses, 1.0, 1.0, 0.0)] for name, losses in {"a": [3.0, 2.0], "b": [2.0, 3.0]}.items()
    }
    assert largest_difference(measurements) == 1.0


@pytest.mark.timeout(600)
def test_it_needs_neither_ray_nor_faiss() -> None:
    """A GPU machine may have torch, transformers and DeepSpeed only."""
    program = (
        "import sys, bench.finetune, bench.finetune_memory, pipeline.finetuning.step.training;"
        "print([name for name in ('ray', 'faiss') if name in sys.modules])"
    )
    output = run_process(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert output.stdout.splitlines()[-1] == "[]"


def test_unknown_shapes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--shapes", "llama-7t"])
    assert stopped.value.code == 2
    assert "llama-1b" in capsys.readouterr().err
