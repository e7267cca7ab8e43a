"""An annotate that records which texts each of its processes begins and ends."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from bench.faults.world import configuration
from pipeline.annotation.annotator_actor import AnnotateBatch
from pipeline.annotation.run import annotate
from tools_service.base.errors import ConfigurationError, ToolformerError


class RecordedBatch(AnnotateBatch):
    """Records which texts it begins and ends, in a file per process that survives a kill."""

    def __init__(self, config: Any, tools: Any, progress: Any) -> None:
        super().__init__(config, tools, progress)
        file = record_folder(config.output) / str(os.getpid())
        self._record = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        ids = " ".join(map(str, batch["text_id"].to_pylist()))
        if self._refused is None:
            os.write(self._record, f"begun {ids}\n".encode())
        annotated = await super().__call__(batch)
        os.write(self._record, f"done {ids}\n".encode())
        return annotated


def record_folder(output: Path) -> Path:
    """Where `RecordedBatch` writes for a run into `output`, on another disk than the round's folder."""
    return output.parent.with_name(f"{output.parent.name}.record")


def run_annotate(inputs: str, output: str) -> int:
    """The command of a round. Exit code and message are those of `python -m pipeline annotate`."""
    try:
        annotate(configuration(Path(inputs), Path(output)), RecordedBatch)
    except ToolformerError as error:
        print(f"python -m pipeline annotate: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def live_actors(output: Path) -> list[int]:
    """Process ids of actors that have loaded their model."""
    pids = (int(path.name) for path in record_folder(output).iterdir())
    return sorted(pid for pid in pids if psutil.pid_exists(pid))


def repetitions(output: Path, event: str) -> int:
    """How often texts were `begun` or `done` again, over all starts."""
    lines = (line for path in record_folder(output).iterdir() for line in path.read_text().splitlines())
    times = Counter(text_id for line in lines if line.startswith(event) for text_id in line.split()[1:])
    return sum(times.values()) - len(times)
