"""Training data through Ray Data: the batches of the indexed reader, and no more of it than is needed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.data import streaming
from pipeline.finetuning.data.augmented_files import digest, read_index
from pipeline.finetuning.data.batches import IndexedBatches, StepBatch
from pipeline.finetuning.data.streaming import StepsByRank, StepStream, StreamedBatches
from pipeline.finetuning.data.token_store import TokenStore
from pipeline.finetuning.data.tokenizing import prepare
from pipeline.finetuning.run import finetune
from tests.pipeline.finetuning.data.test_batches import assert_equal
from tests.pipeline.finetuning.inputs import (
    base_model,
    configuration,
    load_examples,
    plain_torch,
    rows,
    write,
)
from tests.pipeline.finetuning.test_run import kill_a_worker_after

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    base_model(folder / "base")
    write(folder / "augmented", [rows(20), rows(45)[20:]])
    return folder


def test_ray_tokenises_and_streams_what_one_process_would(folder: Path, ray_cluster: None) -> None:
    """The same files, and from any step on the same batches, with packing and masked results."""
    values = {"packing": True, "mask_results": True, "max_steps": 40, "sequence_length": 64}
    config = configuration(folder, tokens=folder / "indexed", **values)
    words = AutoTokenizer.from_pretrained(config.model.path)
    index, data = read_index(config.data), digest(config.data)
    on_ray = config.model_copy(update={"tokens": folder / "streamed", "reader": "streamed"})
    stores = [prepare(c, words, data, index).folder for c in (config, on_ray)]
    contents = [{path.name: path.read_bytes() for path in store.iterdir()} for store in stores]
    assert contents[0] == contents[1]
    train = load_examples(config, words).train
    shards = StepsByRank(on_ray, TokenStore(stores[1])).configure({"train": None}, 2)
    for rank, shard in enumerate(shards):
        streamed, indexed = StreamedBatches(shard["train"]), IndexedBatches(train, config, rank)
        # A worker that was restarted begins in the middle, and one that goes back reads again.
        for step in [*range(21, 41), *range(5, 8)]:
            assert_equal(streamed.batch(step), indexed.batch(step))


def big_table(folder: Path, number: int) -> Iterator[pa.Table]:
    (folder / str(number)).touch()
    yield pa.table({"number": [number], "content": [b"\0" * 8 * 2**20]})


def test_what_is_read_ahead_is_bounded(tmp_path: Path, ray_cluster: None) -> None:
    """200 steps of 8 MB each, which the object store of 256 MB does not hold."""
    tasks = [partial(big_table, tmp_path, number) for number in range(200)]
    tables = streaming.in_order(tasks, batch_size=1, num_cpus=0, concurrency=1)
    assert next(tables)["number"].to_pylist() == [0]
    read = -1
    while read != (now := len(list(tmp_path.iterdir()))):
        read = now
        time.sleep(2)
    assert read <= 12
    assert [next(tables)["number"].to_pylist() for _ in range(30)] == [[n] for n in range(1, 31)]
    tables.close()


def test_what_was_consumed_is_not_read(
    folder: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(folder, max_steps=100)
    asked: list[range] = []

    def in_order(tasks: list[partial[Iterator[pa.Table]]], **_: object) -> Iterator[pa.Table]:
        asked.extend(task.args[1] for task in tasks)
        return iter(())

    monkeypatch.setattr(streaming, "in_order", in_order)
    steps: Iterator[tuple[int, StepBatch]] = StepStream(config, TokenStore(folder), 0).steps(38)
    assert list(steps) == []
    assert [step for steps_of_task in asked for step in steps_of_task] == list(range(38, 101))


@pytest.mark.timeout(600)
def test_a_streamed_run_survives_a_killed_worker_with_the_losses_of_plain_torch(
    folder: Path, ray_cluster: None
) -> None:
    """Packed, on two workers; the last checkpoint before the kill is that of step 8."""
    values = {"reader": "streamed", "packing": True, "max_steps": 24, "evaluate_every": 8}
    config = configuration(folder, output=folder / "model", **values)
    killer = threading.Thread(target=kill_a_worker_after, args=(config, 9), daemon=True)
    killer.start()
    finetune(config)
    killer.join(timeout=1)
    assert not killer.is_alive(), "no worker was killed"
    data = load_examples(config, AutoTokenizer.from_pretrained(config.model.path))
    losses, norms, _ = plain_torch(config, data, 16)
    events = [json.loads(line) for line in RunFolder(config.output).metrics.read_text().splitlines()]
    taken = [event for event in events if "loss" in event]
    assert [event["step"] for event in taken] == list(range(1, 25))
    assert [event["loss"] for event in taken[:16]] == pytest.approx(losses, abs=1e-4)
    assert [event["gradient_norm"] for event in taken[:16]] == pytest.approx(norms, rel=1e-3)
    assert not RunFolder(config.output).checkpoints.exists(), "the tokens went with the checkpoints"
