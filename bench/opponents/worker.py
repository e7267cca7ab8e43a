"""An inference engine behind a pipe: token ids in, token ids and log-probabilities out.

Started by bench/opponents/process.py in the environment that the user named. That environment need
not contain our dependencies, so this module imports only the standard library. A request is a line
of JSON on standard input; its response is a line on standard output, with the wall and CPU seconds
and the forwards that it took. What the engine prints goes to standard error.

Methods of a worker, all of which take sequences of token ids:

- `load` (once): start the engine with these settings. Gives `versions`.
- `token_logprobs`: the log-probability of `token` at each position from `starts` on; None where the
  engine lists the `top` likeliest tokens only and this is not one of them. `lowest` is the lowest
  log-probability that is listed there.
- `next_logprob`: the log-probability of `token` after each sequence.
- `sample`: m draws after each sequence at temperature 1, each up to a token of `stop`.
- `score`: the log-probabilities of the tokens at `indices` of each sequence.
- `reset`: empty the prefix cache, and forget the peak of the memory.
- `memory`: the peak memory since then.

All but the last two also give `fed`: how many tokens of each sequence ran, because they were not in
the prefix cache (of `sample`, for each draw).
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

Response = dict[str, Any]
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """One engine. A subclass has a method `do_NAME` for each method above but `memory`."""

    name: str = ""
    """What the engine is called."""
    packages: tuple[str, ...] = ()
    """Packages whose versions `load` gives."""
    hint: str = ""
    """What to do where the engine cannot be imported."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.forwards = 0

    def respond(self, method: str, **fields: Any) -> Response:
        """The response of the method called `method`, with the time it took."""
        function = getattr(self, f"do_{method}", None)
        if not (callable(function) and (self.engine or method == "load")):
            return {"error": f"no method {method!r} now"}
        wall, cpu, forwards = time.perf_counter(), cpu_s(), self.forwards
        response: Response = function(**fields)
        timing = {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu}
        return response | timing | {"forwards": self.forwards - forwards}

    def do_reset(self) -> Response:
        """Empty the prefix cache, and forget the peak of the memory."""
        self.empty_cache()
        for process in process_tree():
            with suppress(OSError):  # it has ended, or may not be written
                Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")
        return {}

    def do_memory(self) -> Response:
        """The peak memory of the engine's processes, in MiB."""
        return {"peak_mib": peak_mib()}

    def empty_cache(self) -> None:
        """Empty the prefix cache."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """The versions of the packages that are installed."""
        versions = {}
        for package in self.packages:
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        return versions


def process_tree() -> list[int]:
    """This process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [os.getpid()]
    for process in tree:  # grows while it is read
        tree += children.get(process, [])
    return tree


def cpu_s() -> float:
    """The CPU seconds of the process tree."""
    fields = [_stat(process) for process in process_tree()]
    return sum((int(of[11]) + int(of[12])) / _TICKS for of in fields if of)


def peak_mib() -> float:
    """The sum of the peak resident sizes of the process tree, in MiB. Shared pages count for each."""
    kib = 0
    for process in process_tree():
        with suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kib / 2**10


def _stat(process: int) -> list[str]:
    """The fields of a process from the third on (its state); none if it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def serve(worker: Worker) -> None:
    """Respond until standard input ends. An exception is the last response."""
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what the engine prints out of the responses
    for line in sys.stdin:
        try:
            response = worker.respond(**json.loads(line))
        except ImportError as error:
            response = {"error": f"{worker.name} cannot be imported there ({error}){worker.hint}"}
        except Exception as error:  # the other process raises it
            response = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(response), file=responses, flush=True)
        if "error" in response:
            break
