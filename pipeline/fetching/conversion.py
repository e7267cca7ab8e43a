"""Pickled weights (.bin) → safetensors, by a process of its own with bounds of memory and time.

In: files of one checkpoint, and its configuration, which says which weights are tied. Out: safetensors in a
folder, in shards of at most 4 GB; FetchError if the files are damaged or more than weights. unpickling.py
runs in the process and opens the files; this side never does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.fetching.errors import FetchError
from pipeline.fetching.unpickling import Job, Result
from tools_service.base.files import atomic_write_json
from tools_service.base.weights import INDEX

SHARD_BYTES = 4 * 10**9
_LEAST_S, _LEAST_BYTES_PER_S = 600.0, 10e6
# What Python and torch need to start. Tokens, proxies and addresses are not among it.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "SYSTEMROOT")


def convert(
    name: str,
    files: Sequence[Path],
    folder: Path,
    *,
    tied: dict[str, str],
    indexed: dict[str, str] | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the tensors of `files` to `folder` in safetensors. Raises FetchError, which names `name`.

    `tied` names the tensors that the model takes from another name; where the files have both as the same
    bytes, the first is left out, as transformers does. `indexed` has all names that there must be.
    """
    job = Job([str(file.resolve()) for file in files], str(folder.resolve()), tied, indexed, shard_bytes)
    size = sum(file.stat().st_size for file in files)
    result = _run(name, job, _LEAST_S + size / _LEAST_BYTES_PER_S)
    if result.error is not None:
        raise FetchError(f"{name}: {result.error}")
    if result.index is not None:
        atomic_write_json(folder / INDEX, result.index)


def _run(name: str, job: Job, seconds: float) -> Result:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pipeline.fetching.unpickling"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{name}: converting its weights took more than {seconds:,.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2][:200] or f"exit code {done.returncode}"
        raise FetchError(f"{name}: its weights cannot be converted: {said}")
    return Result(**json.loads(done.stdout))
