"""Two real stalls on the tests' cluster: the run says what it waits for, and ends well when that comes."""

from __future__ import annotations

import gc
import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from bench.fixtures import small_run
from pipeline.annotation.run import annotate
from pipeline.base.config import AnnotateConfig
from pipeline.storage.manifest import AnnotationManifest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@contextmanager
def stopped_replica(tool: str) -> Iterator[None]:
    """The replica of `tool` stands still during the block."""
    replicas = [
        process
        for process in psutil.Process().children(recursive=True)  # the cluster is this process's own
        if "ServeReplica" in (line := " ".join(process.cmdline())) and f":{tool}" in line
    ]
    assert replicas, "no replica of the tool"
    for process in replicas:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in replicas:
            process.send_signal(signal.SIGCONT)


@contextmanager
def used_cpus(cpus: int) -> Iterator[None]:
    """Another job uses so many CPUs during the block."""

    @ray.remote
    class Other:
        def is_there(self) -> bool:
            return True

    gc.collect()  # actors of failed runs in other tests end when nothing refers to them
    other = Other.options(num_cpus=cpus).remote()  # type: ignore[attr-defined]
    ray.get(other.is_there.remote())
    try:
        yield
    finally:
        ray.kill(other)


class Recorded(logging.Handler):
    """Keeps messages. (A run silences every stream handler of Ray's loggers, pytest's among them.)"""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    handler, logger = Recorded(), logging.getLogger("pipeline.annotation")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def wait_for(recorded: Recorded, words: str, run: Future[AnnotationManifest]) -> str:
    while True:
        is_done = run.done()
        for message in list(recorded.messages):
            if words in message:
                return message
        assert not is_done, recorded.messages
        time.sleep(0.1)


def config(world: Path, name: str) -> AnnotateConfig:
    usual = small_run.config(world, world / name)
    return usual.model_copy(update={"ray": usual.ray.model_copy(update={"stall_warning_s": 2.0})})


def test_a_run_says_what_it_waits_for(ray_cluster: None, tmp_path: Path, recorded: Recorded) -> None:
    small_run.write_world(tmp_path, pages=12)
    with ThreadPoolExecutor(1) as driver:
        with used_cpus(7):
            run = driver.submit(annotate, config(tmp_path, "crowded"))
            sentence = wait_for(recorded, "annotating actors wait for 1 CPU on one node", run)
        assert "free" in sentence
        assert "lower ray.cpus_per_actor" in sentence
        assert run.result(300).state == "finished"
        wait_for(recorded, "texts are done again", run)

        recorded.messages.clear()
        with stopped_replica("Calculator"):
            run = driver.submit(annotate, config(tmp_path, "waiting"))
            sentence = wait_for(recorded, "annotators wait for the tool Calculator", run)
        assert "1 of 1 replicas run" in sentence
        assert run.result(300).state == "finished"
