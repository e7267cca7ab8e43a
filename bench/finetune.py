"""Speed of fine-tuning by ZeRO stage and model size, against a plain PyTorch loop and transformers' Trainer.

    python -m bench.finetune                                      # CPU: models of 2 M and 20 M parameters
    python -m bench.finetune --shapes llama-135m --rounds 3
    python -m bench.finetune --shapes llama-1b --stages 1 3       # one GPU
    python -m bench.finetune --shapes gptj-6b --stages 3 --alone  # one GPU of 141 GB: this project only

In: nothing; weights and texts are random. Each system has a process of its own, and they take turns: the
same model, batches, padding, precision and number of threads (finetune_systems.py). The first turn warms
up; the figures are medians of the others. The first losses of all systems must be equal. With
`--workers 2` the steps of two workers are measured, too. Out: tokens/s, the ratio of the step times, and
the utilisation: FLOPs of the tokens that are not padding, as a share of the best matrix rate measured in
this run; runs/bench/finetune.json. On a CPU the ratios are those of CPU seconds, which other processes
disturb less; both are in the file.

Exit code 1 if losses differ by more than 1e-4 (bfloat16: 2e-2), or if a step takes more than 1.1 times the
plain loop's time or more than the Trainer's; on a GPU, if the utilisation of llama-1b is below 45 %.
Needs neither Ray nor faiss. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig, LlamaConfig

from bench import results
from bench.finetune_systems import Steps, Workload, run, save_model, start
from bench.fixtures.worker_processes import worker_processes
from bench.measuring import matrix_rate
from pipeline.base.records import Cost
from pipeline.engine.loading import model_shape
from pipeline.finetuning.watching.step_meter import batch_cost

TOLERANCE, ROUGH_TOLERANCE = 1e-4, 2e-2  # nats per token, in float32 and in bfloat16
MOST_OF_PLAIN, LEAST_UTILISATION = 1.10, 0.45

Take = Callable[[int, int], Steps]
"""Takes `count` optimizer steps from step `first` on."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, and the sizes of its batches."""

    config: Callable[[], Any]
    sequence_length: int
    batch_size: int
    micro_batch_size: int
    ragged: bool = True
    gradient_checkpointing: bool = False


def llama(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> LlamaConfig:
    """A Llama with tied embeddings."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
    )


SHAPES = {
    "tiny": Shape(lambda: llama(32, 2, 2, 2, 64, 200), 32, 8, 4),  # for the tests
    "demo-2m": Shape(lambda: llama(192, 5, 4, 4, 512, 2_560), 256, 16, 8),
    "llama-20m": Shape(lambda: llama(384, 8, 6, 6, 1_024, 8_192), 256, 8, 4),
    "llama-135m": Shape(lambda: llama(576, 30, 9, 3, 1_536, 49_152), 256, 8, 4),
    "llama-1b": Shape(
        lambda: llama(2_048, 16, 32, 8, 8_192, 128_256),
        1_024,
        32,
        8,
        ragged=False,
        gradient_checkpointing=True,
    ),
    "gptj-6b": Shape(GPTJConfig, 1_024, 32, 4, ragged=False, gradient_checkpointing=True),
}


@contextmanager
def system(workload: Workload, name: str, workers: int = 1) -> Iterator[Take]:
    """A system in processes of its own; with several workers, the times are those of the slowest."""
    if name.startswith("zero"):
        environment = {"OMP_NUM_THREADS": str(workload.threads)}
        with worker_processes(workers, environment, use_gpu=workload.use_gpu) as call:
            call(start, workload, name, workers)

            def take(first: int, count: int) -> Steps:
                of_workers: list[Steps] = call(run, first, count)
                slowest = (
                    max(getattr(s, name) for s in of_workers) for name in ("wall_s", "cpu_s", "peak_mib")
                )
                return Steps(of_workers[0].losses, *slowest)

            yield take
    else:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(start, 0, workload, name, 1).result()
            yield lambda first, count: process.submit(run, 0, first, count).result()


def alternate(
    workload: Workload, names: Sequence[str], rounds: int, steps: int, workers: int = 1
) -> dict[str, list[Steps]]:
    """The measurements of each system, the first to warm up."""
    with ExitStack() as stack:
        systems = {name: stack.enter_context(system(workload, name, workers)) for name in names}
        measurements: dict[str, list[Steps]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name, take in systems.items():
                measurements[name].append(take(1 + turn * steps, steps))
    return measurements


def largest_difference(measurements: dict[str, list[Steps]]) -> float:
    """Of the first turn's losses, between any two systems; nats per token."""
    losses = torch.tensor([of_system[0].losses for of_system in measurements.values()], dtype=torch.float64)
    return float((losses.max(dim=0).values - losses.min(dim=0).values).max())


def work(workload: Workload, first: int, count: int) -> tuple[int, float]:
    """Tokens without padding, and FLOPs of forward and backward, of these steps."""
    batches = workload.batches(workload.configuration(1, 1))
    costs = [batch_cost(batches.batch(step)) for step in range(first, first + count)]
    cost = sum(costs, Cost())
    return cost.tokens, 3.0 * model_shape(workload.folder).flops(cost)


def summary(
    workload: Workload, measurements: dict[str, list[Steps]], matrix_flops: float, steps: int
) -> list[dict[str, Any]]:
    """A row for each system: medians over the measurements after the first.

    `matrix_flops` is per second of the clock that counts: a GPU's wall seconds, or CPU seconds.
    """
    done = [work(workload, 1 + turn * steps, steps) for turn in range(len(next(iter(measurements.values()))))]
    rows = []
    rate_clock = "wall_s" if workload.use_gpu else "cpu_s"
    for name, of_system in measurements.items():
        row: dict[str, Any] = {"system": name, "peak_mib": max(s.peak_mib for s in of_system)}
        for clock in ("wall_s", "cpu_s"):
            timed = [(getattr(s, clock), *d) for s, d in zip(of_system, done, strict=True)][1:]
            row[f"ms_per_step_{clock[:-2]}"] = 1e3 * statistics.median(s for s, *_ in timed) / steps
            row[f"tokens_per_{clock}"] = statistics.median(tokens / s for s, tokens, _ in timed)
            if clock == rate_clock:
                row["utilisation"] = statistics.median(flops / s / matrix_flops for s, _, flops in timed)
            for other in ("plain", "trainer"):
                if other in measurements:
                    pairs = zip(of_system[1:], measurements[other][1:], strict=True)
                    row[f"of_{other}_{clock[:-2]}"] = statistics.median(
                        getattr(own, clock) / getattr(its, clock) for own, its in pairs
                    )
        rows.append(row)
    return rows


def measure(shape: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One shape: all systems with one worker, then this project's with several."""
    settings = SHAPES[shape]
    config = settings.config()
    save_model(config, folder)
    workload = Workload(
        str(folder),
        config.vocab_size,
        settings.sequence_length,
        settings.batch_size,
        settings.micro_batch_size,
        ragged=settings.ragged,
        gradient_checkpointing=settings.gradient_checkpointing,
        use_gpu=torch.cuda.is_available(),
        threads=arguments.threads,
    )
    stages = [f"zero{stage}" for stage in arguments.stages if stage or not workload.use_gpu]
    names = stages if arguments.alone else ["plain", "trainer", *stages]
    dtype = torch.bfloat16 if workload.use_gpu else torch.float32
    torch.set_num_threads(workload.threads)
    clock = time.perf_counter if workload.use_gpu else time.process_time
    rate = matrix_rate(workload.device, dtype, clock)
    measurements = alternate(workload, names, arguments.rounds, arguments.steps)
    rate = max(rate, matrix_rate(workload.device, dtype, clock))
    found: dict[str, Any] = {
        "shape": shape,
        "workload": asdict(replace(workload, folder="")),
        "matrix_flops_per_s": rate,
        "largest_difference": largest_difference(measurements),
        "one_worker": summary(workload, measurements, rate, arguments.steps),
    }
    workers = arguments.workers
    if workers > 1 and settings.batch_size % (workers * settings.micro_batch_size) == 0:
        together = alternate(workload, stages, arguments.rounds, arguments.steps, workers)
        found["several_workers"] = summary(workload, together, rate * workers, arguments.steps)
        both = measurements[names[0]][:1], *(of_stage[:1] for of_stage in together.values())
        found["largest_difference_of_workers"] = largest_difference(dict(enumerate(both)))  # type: ignore[arg-type]
    return found


def show(found: dict[str, Any], clock: str) -> None:
    """Print the tables of one shape."""
    print(f"{found['shape']}: losses within {found['largest_difference']:.0e} nats of one another")
    for part in ("one_worker", "several_workers"):
        for row in found.get(part, ()):
            ratios = [
                f"{row[f'of_{other}_{clock}']:.2f} of {other}"
                for other in ("plain", "trainer")
                if f"of_{other}_{clock}" in row and other != row["system"]
            ]
            print(
                f"  {part.replace('_', ' '):15} {row['system']:8} {row[f'ms_per_step_{clock}']:9.1f} ms a "
                f"step, {row[f'tokens_per_{clock}_s']:8,.0f} tokens/s, utilisation "
                f"{row['utilisation']:.0%}  {', '.join(ratios)}",
                flush=True,
            )


def failures(found: dict[str, Any], clock: str) -> Iterator[str]:
    """What misses the bar, in words."""
    use_gpu = found["workload"]["use_gpu"]
    for key in ("largest_difference", "largest_difference_of_workers"):
        if not found.get(key, 0.0) <= (ROUGH_TOLERANCE if use_gpu else TOLERANCE):
            yield f"{found['shape']}: losses differ by {found[key]:.1e}"
    for row in found["one_worker"] if found["shape"] != "tiny" else ():
        if not row["system"].startswith("zero"):
            continue
        if row.get(f"of_plain_{clock}", 0.0) > MOST_OF_PLAIN:
            yield f"{found['shape']} {row['system']}: {row[f'of_plain_{clock}']:.2f} of the plain loop's time"
        if row.get(f"of_trainer_{clock}", 0.0) >= 1.0:
            yield f"{found['shape']} {row['system']}: {row[f'of_trainer_{clock}']:.2f} of the Trainer's time"
        if use_gpu and found["shape"] == "llama-1b" and row["utilisation"] < LEAST_UTILISATION:
            yield f"llama-1b {row['system']}: utilisation {row['utilisation']:.0%}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["demo-2m", "llama-20m"])
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3, help="measurements that count, after one to warm up")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps per turn")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--workers", type=int, default=1, help="measure so many workers by stage, too")
    parser.add_argument("--alone", action="store_true", help="leave out the plain loop and the Trainer")
    return parser.parse_args(arguments)


def main() -> int:
    """Command line; the exit code."""
    arguments = parse()
    clock = "wall" if torch.cuda.is_available() else "cpu"
    measured, missed = [], []
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(shape, Path(folder), arguments)
        show(found, clock)
        missed += failures(found, clock)
        measured.append(found)
    print(f"written: {results.write('finetune', vars(arguments), measured)}")
    print(*missed, sep="\n", end="\n" if missed else "")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
