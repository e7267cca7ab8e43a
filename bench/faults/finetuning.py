"""The faults of finetune. After each of them, weights and metrics are an undisturbed run's to the bit.

A run that goes on with another number of workers adds its gradients in another order: there, the losses are
an undisturbed run's to 1e-4.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from bench.faults.commands import Command, FaultError
from bench.faults.disk import PAGE_BYTES
from bench.faults.merging import MergeFaults
from bench.faults.outcome import compare, leftovers
from bench.faults.rounds import Faults, Injected
from bench.faults.world import NODE, World
from pipeline.finetuning.watching.metrics_log import without_measures

STEPS, EVALUATE_EVERY, WORKERS = 12, 4, 2
OTHER_WORKERS = (("--workers", "1", "--micro-batch-size", "3"), ("--workers", "3"))
TOLERANCE = 1e-4
"""Of losses after a change of the number of workers, in nats."""
OTHER = ("--learning-rate", "2e-2")
"""An option of another run."""
_PATIENCE_S = 30.0
_CHECKPOINT_SHARE = 6  # a run's folder takes up to about this many times the bytes of its result


class FinetuneFaults(Faults):
    """An undisturbed run, and rounds with a fault."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._merges = MergeFaults(world)

    def start(self, folder: Path, *interruption: Any, options: tuple[str, ...] = ()) -> Command:
        data = self._merges.undisturbed / "out"
        values = {
            "--model.path": self.world.inputs / "model",
            "--model.dtype": "float32",
            "--model.device": "cpu",
            "--data": data,
            "--output": folder / "out",
            "--sequence-length": 64,
            "--batch-size": 12,
            "--micro-batch-size": 2,
            "--learning-rate": 1e-2,
            "--max-steps": STEPS,
            "--evaluate-every": EVALUATE_EVERY,
            "--held-out": 5,
            "--workers": WORKERS,
            "--zero-stage": 2,
            "--max-failures": 1,
        }
        named = [str(part) for pair in values.items() for part in pair]
        arguments = ("finetune", "--recipe", "demo", "--no-use-gpu", *named, *options)
        return Command.interrupted(
            folder, arguments, *interruption, environment=self.world.cluster.environment
        )

    @cached_property
    def undisturbed(self) -> tuple[Path, int]:
        """The folder of an undisturbed run, and the number of its changes."""
        folder = self.world.new_folder("trained")
        with self.start(folder) as command:
            if command.wait():
                raise FaultError(f"an undisturbed finetune failed: {command.message()}")
            return folder, command.changes()

    def prepare(self) -> None:
        _ = self.undisturbed

    def _killed(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        """Half of the kills hit the driver's own changes, half come while the workers train."""
        if rng.random() < 0.5:
            return self.killed(folder, rng, self.undisturbed[1])
        with self.start(folder) as command:
            moment = _wait_for_steps(command, folder, rng)
            command.kill()
            return Injected(moment=moment, code=command.wait(), message="")

    def _worker_killed(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._survived(self._kill_a_worker, folder, rng)

    def _node_killed(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        return self._survived(self._kill_a_node, folder, rng)

    def _survived(self, fault: Callable[[random.Random], str], folder: Path, rng: random.Random) -> Injected:
        """A fault that the run must survive by itself."""
        with self.start(folder) as command:
            moment = _wait_for_steps(command, folder, rng)
            moment += fault(rng)
            code, message = command.wait(), command.message()
        problems = [f"the run did not go on by itself: {message[:300]}"] if code else []
        return Injected(moment=moment, code=code, message=message, problems=problems)

    def _kill_a_worker(self, rng: random.Random) -> str:
        workers = self._processes("RayTrainWorker")
        if not workers:
            return ", no worker"
        with suppress(psutil.NoSuchProcess):
            rng.choice(workers).kill()
        return ""

    def _kill_a_node(self, rng: random.Random) -> str:
        """One on which workers train; a new one takes its place."""
        cluster = self.world.cluster
        nodes = [name for name, node in cluster.nodes.items() if _named(node.pid, "RayTrainWorker")]
        cluster.kill_node(rng.choice(sorted(nodes or cluster.nodes)))
        cluster.add_node(NODE)
        return "" if nodes else ", no worker"

    def _resharded(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        """Kill the driver, and go on with one or three workers."""
        with self.start(folder) as command:
            moment = _wait_for_steps(command, folder, rng, least=EVALUATE_EVERY + 1)
            command.kill()
        options = rng.choice(OTHER_WORKERS)
        with self.start(folder, options=options) as command:
            code, message = command.wait(), command.message()
        problems = [f"{' '.join(options)}: {message[:300]}"] if code else []
        injected = Injected(
            moment=f"{moment}, {options[1]} workers", code=code, message=message, problems=problems
        )
        injected.other_sums = True
        return injected

    def _full_disk(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        pages = rng.randint(1, self._pages * _CHECKPOINT_SHARE)
        return self.full_disk(folder, stack, PAGE_BYTES * pages)

    @property
    def _pages(self) -> int:
        weights = self.undisturbed[0] / "out" / "model.safetensors"
        return weights.stat().st_size // PAGE_BYTES

    def _two(self, folder: Path, rng: random.Random, stack: ExitStack) -> Injected:
        number = rng.randint(1, self.undisturbed[1])

        def first(*interruption: Any) -> Command:
            return self.start(folder, *interruption)

        def second() -> Command:
            return self.start(folder, options=OTHER)

        codes, message, problems = self.together(first, second, number, _PATIENCE_S)
        moment = f"change {number}: exit codes {codes[0]} and {codes[1]}"
        if sorted(map(bool, codes)) != [False, True]:
            problems.append("exactly one should have been refused")
        return Injected(moment=moment, code=0, message=message, problems=problems)

    kinds = {  # noqa: RUF012
        "finetune": (_killed, "SIGKILL to finetune before a change of its files, or between two steps"),
        "worker": (_worker_killed, "SIGKILL to a worker of finetune"),
        "trainnode": (_node_killed, "SIGKILL to all processes of a node with workers of finetune"),
        "resharded": (_resharded, "SIGKILL to finetune, which goes on with one or three workers for two"),
        "finetunedisk": (_full_disk, "the file system of finetune's output is full until the command ends"),
        "finetunes": (_two, "another finetune into the output of one that stands still between two changes"),
    }

    def compare(self, folder: Path, injected: Injected) -> dict[str, Any]:
        undisturbed = self.undisturbed[0]
        # Each start has a file of its own for TensorBoard.
        injected.problems += [each for each in leftovers(folder, undisturbed) if "/tensorboard/" not in each]
        until = time.monotonic() + 30
        while (alive := self._processes("RayTrainWorker", "TrainController")) and time.monotonic() < until:
            time.sleep(0.2)
        injected.problems += [f"{process.name()} survives" for process in alive]
        found, expected = _contents(folder / "out"), _contents(undisturbed / "out")
        if injected.other_sums:
            found, expected = _rounded_to(found, expected), [each for each in expected if _has_loss(each[0])]
        differences = compare(found, dict(expected))
        rates = [value["learning_rate"] for key, value in found if key[0] == "loss"]
        others = [value["learning_rate"] for key, value in expected if key[0] == "loss"]
        if rates == [2 * rate for rate in others]:  # the other of two runs, and nothing of the first
            return {"missing": differences["missing"], "twice": differences["twice"], "different": 0}
        return differences

    def _processes(self, *names: str) -> list[psutil.Process]:
        """Processes of the cluster with such names."""
        return _named(self.world.cluster.pid, *names)


def _named(ancestor: int, *names: str) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(ancestor).children(recursive=True):
            with suppress(psutil.Error):
                if any(name in process.name() for name in names):
                    found.append(process)
    return found


def _wait_for_steps(command: Command, folder: Path, rng: random.Random, least: int = 0) -> str:
    """Wait for a random step, from `least` on, and a moment more; returns the moment in words."""
    step, pause_s = rng.randrange(least, STEPS), rng.uniform(0, 0.5)
    command.wait_until(lambda: len(_events(folder / "out")) > step, f"{step} steps")
    time.sleep(pause_s)
    return f"{step} steps + {1e3 * pause_s:.0f} ms" + ", too late" * command.ended


def _has_loss(key: tuple[str, Any]) -> bool:
    return key[0] in ("loss", "held_out_loss")


def _rounded_to(
    found: list[tuple[tuple[str, Any], Any]], expected: list[tuple[tuple[str, Any], Any]]
) -> list[tuple[tuple[str, Any], Any]]:
    """The events of `found`; those whose losses are close to the expected ones as they are there."""
    others = dict(expected)

    def close(key: tuple[str, Any], event: dict[str, Any]) -> bool:
        return key in others and abs(event[key[0]] - others[key][key[0]]) <= TOLERANCE

    return [(key, others[key] if close(key, event) else event) for key, event in found if _has_loss(key)]


def _events(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    with suppress(OSError, ValueError):
        return [without_measures(json.loads(line)) for line in path.read_text().splitlines()]
    return []


def _kind(event: dict[str, Any]) -> str:
    return next((kind for kind in ("held_out_loss", "loss") if kind in event), "probe")


def _contents(output: Path) -> list[tuple[tuple[str, Any], Any]]:
    """All that a run has computed: the events of metrics.jsonl, and the weights' bytes."""
    contents: list[tuple[tuple[str, Any], Any]] = [
        ((_kind(event), event["step"]), event) for event in _events(output)
    ]
    weights = load_file(output / "model.safetensors")
    contents += [(("weights", name), value.tobytes()) for name, value in weights.items()]
    manifest = json.loads((output / "manifest.json").read_text())
    contents += [(("manifest", name), manifest[name]) for name in ("data", "texts", "best")]
    return contents
