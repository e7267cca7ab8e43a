"""The process of an engine: its failures name the interpreter, and its memory and time are measured."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.engines import OPPONENTS
from bench.opponents.process import WorkerProcess
from bench.opponents.worker import Worker, cpu_s, peak_mib, process_tree

pytestmark = pytest.mark.unit


class Loaded(Worker):
    """A worker with an engine that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = object()


def test_an_unknown_method_is_an_error() -> None:
    assert "no method 'guess'" in Loaded().respond("guess")["error"]
    assert "no method 'score'" in Loaded().respond("score")["error"]
    assert "no method 'memory'" in Worker().respond("memory")["error"]


@pytest.mark.parametrize("key", sorted(OPPONENTS))
def test_an_interpreter_without_the_engine_is_named(key: str) -> None:
    if importlib.util.find_spec(key) is not None:
        pytest.skip(f"{key} is installed here")
    opponent, option = OPPONENTS[key], f"--{key}-python"
    env = opponent.environment(sys.executable, torch.device("cpu"))
    process = WorkerProcess(opponent.worker, option, sys.executable, env)
    reason = f"cannot be imported there (No module named '{key}'); install {key}"
    expected = f"{option} {sys.executable}: {opponent.name} {reason}"
    try:
        with pytest.raises(SystemExit, match=re.escape(expected)):
            process.request("load", model="anything")
    finally:
        process.close()
    assert process.process.returncode == 0


@pytest.mark.parametrize("ended", [True, False], ids=["before the request", "at any time"])
def test_an_interpreter_that_does_not_start_is_named(tmp_path: Path, ended: bool) -> None:
    with pytest.raises(SystemExit, match=r"--vllm-python .*no-python: .*No such file"):
        WorkerProcess("bench.vllm.worker", "--vllm-python", str(tmp_path / "no-python"), {})
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    vllm = WorkerProcess("bench.vllm.worker", "--vllm-python", str(broken), {})
    if ended:
        vllm.process.wait()
    try:
        with pytest.raises(SystemExit, match="it is broken"):
            vllm.request("load", model="anything")
    finally:
        vllm.close()


def test_time_and_memory_include_the_processes_that_an_engine_starts() -> None:
    before = cpu_s(), peak_mib()
    busy = "import time; x = bytes(2**26); y = [i for i in range(2_000_000)]; print(1, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", busy], text=True, **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert {os.getpid(), child.pid} <= {*process_tree()}
        assert cpu_s() - before[0] >= 0.01
        assert peak_mib() - before[1] >= 64
        child.communicate("\n")
    assert child.pid not in process_tree()


def test_a_reset_forgets_the_peak() -> None:
    worker = Loaded()
    emptied: list[bool] = []
    worker.empty_cache = lambda: emptied.append(True)
    large = bytearray(2**28)
    del large
    before = worker.respond("memory")["peak_mib"]
    assert worker.respond("reset")["forwards"] == 0
    assert emptied == [True]
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert worker.respond("memory")["peak_mib"] <= before - 128
