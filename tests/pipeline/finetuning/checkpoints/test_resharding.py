"""A run saved by two workers goes on with one or three: the same losses, at every stage and for adapters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.finetuning.checkpoints.checkpointing import workers_of
from tests.pipeline.finetuning.checkpoints.resharding_worker import LOSSES, RUNS
from tests.pipeline.finetuning.inputs import base_model, rows, write

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]


def run_workers(folder: Path, world: int, *, saves: bool) -> dict[str, list[float]]:
    """The losses of the second half by run, as the first of `world` processes reports them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = "tests.pipeline.finetuning.checkpoints.resharding_worker"
    commands = [
        [sys.executable, "-m", module, str(folder), *map(str, (rank, world, port, int(saves)))]
        for rank in range(world)
    ]
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    with ExitStack() as stack:
        workers = []
        for command, log in zip(commands, logs, strict=True):
            output = stack.enter_context(log.open("w"))
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            stack.callback(worker.kill)
            workers.append(worker)
        codes = [worker.wait() for worker in workers]
    assert codes == [0] * world, [log.read_text()[-2_000:] for log in logs]
    losses: dict[str, list[float]] = json.loads((folder / LOSSES).read_text())
    return losses


@pytest.mark.timeout(600)
def test_a_run_goes_on_with_one_or_three_workers_instead_of_two(tmp_path: Path) -> None:
    """The micro-batches are of other sizes, too."""
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(40)])
    undisturbed = run_workers(tmp_path, 2, saves=True)
    before = set(tmp_path.rglob("*"))
    for world in (1, 3):
        losses = run_workers(tmp_path, world, saves=False)
        assert losses.keys() == RUNS.keys()
        for name, expected in undisturbed.items():
            assert losses[name] == pytest.approx(expected, abs=1e-5), f"{name}, {world} workers"
    left = {path for path in tmp_path.rglob("*") if path.suffix != ".log"}
    assert left <= before, "nothing converted is left"


ONE = "zero_pp_rank_{}_mp_rank_00_{}_states.pt"


@pytest.mark.parametrize(
    ("names", "workers"),
    [
        (["mp_rank_00_model_states.pt"], 0),
        (["mp_rank_00_model_states.pt", *(ONE.format(rank, "optim") for rank in range(12))], 12),
        (["bf16_" + ONE.format(rank, kind) for rank in (0, 1) for kind in ("optim", "model")], 2),
    ],
)
def test_the_names_of_the_shards_tell_how_many_workers_saved_them(names: list[str], workers: int) -> None:
    assert workers_of(names) == workers
