"""MKL or oneDNN for a model's linear layers: measured once, and kept for all processes of a machine.

Rows of a resumed run equal those of an undisturbed run to the last bit, so all processes must choose
alike, and a measurement of each process for itself would not. The first process keeps its outcome in
a file of the user's cache folder, under a name made of the processor, torch's version, the number of
threads, the type and the shapes of the layers; the others read it. In: layers and two ways to run
them. Out: which way is used (docs/decisions/0039).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools_service.base.cpus import available_cpus
from tools_service.base.files import CACHE_VARIABLE, cache_folder, now, read_json

logger = logging.getLogger(__name__)


MIN_SPEEDUP = 1.15
"""The copies cost memory, and below this factor the engine as a whole gains nothing."""
MIN_SPEEDUP_NOT_KEPT = 1.3
"""Where nothing can be kept, processes agree only if noise cannot decide."""

Way = Callable[[Tensor], Any]
Ways = Callable[[nn.Linear], tuple[Way, Way]]
"""The plain and the packed way to run a layer."""

_TOKENS = (64, 512)
_MIN_TOKENS = 16
_MAX_FLOPS = 1e9
_MEASURED_S = 1.0
_ROUNDS = 15
_MIN_ROUNDS = 3


def packed_is_faster(layers: Sequence[nn.Linear], ways: Ways) -> bool:
    """Whether the packed way is faster for all `layers` together, as the first process found."""
    key = _key(layers)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache_folder() / f"linear-{digest}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    speedup = measure_speedup(layers, ways)
    outcome = {"packed": speedup >= MIN_SPEEDUP, "speedup": round(speedup, 3), "measured": now(), **key}
    try:
        _keep(path, json.dumps(outcome, indent=1))
    except OSError as error:
        logger.warning(
            "the choice of linear layers cannot be kept in %s (%s): name another folder in %s",
            path.parent,
            error.strerror,
            CACHE_VARIABLE,
        )
        return speedup >= MIN_SPEEDUP_NOT_KEPT
    # Another process may have been first.
    kept = _read(path)
    return speedup >= MIN_SPEEDUP_NOT_KEPT if kept is None else kept


def memory_for_copies() -> int:
    """Bytes that packed copies may take: a quarter of this process's share of the memory.

    The share goes by threads: processes that divide the CPUs among them divide the memory, too. The
    memory that happens to be free would let processes choose differently.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        with suppress(OSError, ValueError):  # "max" is no number
            memory = min(memory, int(Path("/sys/fs/cgroup", limit).read_text(encoding="ascii")))
    share = min(1.0, torch.get_num_threads() / available_cpus())
    return int(memory * share / 4)


@torch.inference_mode()
def measure_speedup(layers: Sequence[nn.Linear], ways: Ways) -> float:
    """The plain way's time over the packed way's, for few and for many tokens in every layer.

    Layers of one shape are measured once; the best of several runs counts, in turns.
    """
    counts = Counter(map(_shape, layers))
    by_shape = {_shape(layer): layer for layer in layers}
    runs = []
    for shape, layer in by_shape.items():
        both = ways(layer)
        affordable = int(_MAX_FLOPS / (2 * layer.weight.numel()))
        for wanted in _TOKENS:
            tokens = max(_MIN_TOKENS, min(wanted, affordable))
            x = torch.ones(tokens, layer.in_features, dtype=layer.weight.dtype)
            runs.append((counts[shape], both, x, [float("inf")] * 2))
    began = time.perf_counter()
    # Other processes on the CPUs delay one thread's wall time and not its CPU time.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for finished_rounds in range(_ROUNDS):
        if finished_rounds >= _MIN_ROUNDS and time.perf_counter() - began > _MEASURED_S:
            break
        for _, both, x, best in runs:
            for index, way in enumerate(both):
                started = clock()
                way(x)
                best[index] = min(best[index], clock() - started)
    plain, packed = (sum(count * best[way] for count, _, _, best in runs) for way in (0, 1))
    return plain / packed


def _shape(layer: nn.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _key(layers: Sequence[nn.Linear]) -> dict[str, Any]:
    """What the outcome depends on."""
    shapes = sorted(Counter(map(_shape, layers)).items())
    return {
        "processor": _processor(),
        "cpus": available_cpus(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(layers[0].weight.dtype),
        "layers": [[*shape, count] for shape, count in shapes],
    }


def _processor() -> str:
    """The processor's name and instructions. Machines that share a home folder may differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def _keep(path: Path, text: str) -> None:
    """Write the file whole, unless another process has. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        # A link, unlike a rename, never replaces the outcome of the process that was first.
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        Path(part).unlink()


def _read(path: Path) -> bool | None:
    """The kept choice; None if there is none. A damaged file is removed."""
    try:
        packed = read_json(path)["packed"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        packed = None
    if isinstance(packed, bool):
        return packed
    with suppress(OSError):
        path.unlink()
    return None
