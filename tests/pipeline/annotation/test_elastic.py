"""A run whose nodes come and go: it begins with one GPU, a second joins, the first is lost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench import elastic, simulated_gpus
from cluster.local import LocalCluster
from pipeline.base.config import CorpusConfig
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import ROWS, parquet_files
from pipeline.syntax.tokenizer import TokenCounter

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BATCHES = 30


def test_nodes_join_a_run_and_are_lost(tmp_path: Path) -> None:
    """The batches are those of a corpus that is cut in order, whatever happened to the actors."""
    output = tmp_path / "out"
    simulated_gpus.write_pages(tmp_path / "pages", BATCHES * simulated_gpus.TEXTS_PER_BATCH)
    (tmp_path / simulated_gpus.SECONDS).write_text("2", encoding="ascii")
    times = simulated_gpus.times_folder(output)
    with LocalCluster(["cpus=8", "cpus=4,gpus=1"]) as cluster:
        process = elastic.annotation_process(cluster, tmp_path, output)

        def wait_until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert process.poll() is None, "the run ended too early"
                time.sleep(0.1)

        with elastic.running(process):
            wait_until(lambda: len(parquet_files(output / ROWS)) >= 2)
            cluster.add_node("cpus=4,gpus=1")
            wait_until(lambda: len(list(times.iterdir())) == 2)
            written = len(parquet_files(output / ROWS))
            wait_until(lambda: len(parquet_files(output / ROWS)) > written)
            lost = cluster.nodes["2"].node_id
            cluster.kill_node("2")
    actors = elastic.lives(times, {lost: time.monotonic()})
    first, joined = sorted(actors, key=lambda actor: actor.ready)[:2]  # a third may come when all is done
    assert first.node == lost != joined.node
    assert first.spans
    assert joined.spans
    config = simulated_gpus.configuration(tmp_path, output, 1)
    corpus = CorpusConfig(paths=(str(tmp_path / "pages"),))
    texts = read_corpus(list_files(corpus), corpus, TokenCounter(config.model.path))
    ids = np.array([text.text_id for text in texts], np.int64).reshape(BATCHES, -1)
    names = {f"{hashlib.blake2b(batch.tobytes(), digest_size=12).hexdigest()}.parquet" for batch in ids}
    assert {path.name for path in parquet_files(output / ROWS)} == names
    assert sorted(pq.read_table(output / ROWS)["text_id"].to_pylist()) == sorted(ids.flatten().tolist())
    [session] = read_manifest(output).sessions
    assert session.gpu_hours is not None
    assert session.gpu_hours * 3_600 > BATCHES * 2, "GPUs are held for longer than batches take"
