"""An inference engine that bench.annotate compares ours with, and one that is loaded.

In: an engine of bench/engines.py, the interpreter of its environment, a workload. Out: a `LoadedOpponent`,
which annotates the texts any number of times, and scores the calls of another system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.measuring import measured
from bench.opponents.annotator import ClientAnnotator, calls_to_score
from bench.opponents.process import WorkerProcess, model_folder
from bench.systems import SystemRun, no_wait
from bench.workload import Workload
from pipeline.base.records import Call
from pipeline.engine.model import LanguageModel

WARM_UP = 8  # texts
_VARIABLES = ("VLLM_", "SGLANG_", "LD_PRELOAD", "OMP_")


@dataclass(frozen=True)
class Opponent:
    """An inference engine: how it is called, and how it is started."""

    name: str
    worker: str
    """The module of its worker."""
    settings: Callable[[LanguageModel, str], dict[str, Any]]
    environment: Callable[[str, torch.device], dict[str, str]]


@dataclass(frozen=True)
class LoadedOpponent:
    """An engine with the workload's model, warmed up."""

    name: str
    process: WorkerProcess
    annotator: ClientAnnotator
    workload: Workload
    used_before: int
    """Bytes of the GPU that were used before it was started."""
    setup: dict[str, Any]
    """Its versions, settings and variables."""

    def run(self, ready: Callable[[], Any] = no_wait) -> SystemRun:
        """Annotate the texts, with the clock started when `ready` returns.

        The cache contains only the prompt then. The CPU time is that of both sides. The memory is
        that of the engine's processes, or of the GPU, with the cache that the engine allocates.
        """
        annotator = self.annotator
        annotator.reset()
        ready()
        with measured(torch.device("cpu")) as timing:
            calls = annotator.annotate(self.workload.texts)
        timing["cpu_s"] += sum(annotator.cpu_s.values())
        timing["peak_mib"] = self._peak_mib()
        usage, phases = dict(annotator.usage), {"wall_s_by_method": dict(annotator.wall_s)}
        return SystemRun(self.name, timing, annotator.candidates, calls, usage, annotator.forwards, phases)

    def score(self, calls: Sequence[Sequence[Call]]) -> list[list[Call]]:
        """Calls of each text by another system, as this engine scores them."""
        texts = self.workload.texts
        executed = [
            calls_to_score(self.workload.model, text, of_text)
            for text, of_text in zip(texts, calls, strict=True)
        ]
        return self.annotator.score(texts, executed)

    def _peak_mib(self) -> float:
        if self.workload.model.device.type == "cuda":
            return (_used_bytes(self.workload.model.device) - self.used_before) / 2**20
        peak: float = self.process.request("memory")["peak_mib"]
        return peak


@contextmanager
def start(opponent: Opponent, option: str, python: str, workload: Workload) -> Iterator[LoadedOpponent]:
    """The engine in a process of its own. `python` was named in `option`. SystemExit if it fails."""
    model = workload.model
    env = opponent.environment(python, model.device)
    with model_folder(model) as path:
        settings = opponent.settings(model, path)
        used_before = _used_bytes(model.device)
        process = WorkerProcess(opponent.worker, option, python, env)
        try:
            versions = process.request("load", **settings)["versions"]
            annotator = ClientAnnotator(process.request, model, workload.tools, workload.method)
            annotator.warm_up(workload.texts[:WARM_UP])
            setup = {
                "versions": versions,
                "settings": settings,
                "environment": {name: env[name] for name in sorted(env) if name.startswith(_VARIABLES)},
                "name_drawn_first": annotator.name_first,
            }
            yield LoadedOpponent(opponent.name, process, annotator, workload, used_before, setup)
        finally:
            process.close()


def _used_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free
