"""The layers outside attention on this CPU: how linear layers run, and the engine with each way.

    python -m bench.linear [--model demo] [--dtype float32] [--tool Calculator] [--texts 64] [--rounds 3]

First the rate of a square matrix product through MKL, oneDNN and in bfloat16, and of each kind of linear
layer in the model with 64 and 1,024 tokens, plain and packed, with the largest difference relative to
the largest number. Then the engine annotates the same texts with plain modules, with fused ones
(tools_service/base/fused_layers.py), with packed linear layers (packed_linear.py) and with both, in
turns. All must keep the same calls; the largest difference of a loss is printed, and the share of the
CPU time that linear layers take. Out: a table, the choice that loading takes here, and
runs/bench/linear.json. Times are CPU seconds, so that other work disturbs them less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench import results
from bench.annotate import compare_calls
from bench.annotate import parse as parse_annotate
from bench.systems import run_engine
from bench.workload import Workload
from tools_service.base.fused_layers import fuse_layers, unfuse_layers
from tools_service.base.packed_linear import (
    VARIABLE,
    pack_linear_layers,
    packed_linear,
    unpack_linear_layers,
)

TOKENS = (64, 1_024)
MEASURED_S = 0.3
WAYS = {"plain": (False, False), "fused": (True, False), "packed": (False, True), "both": (True, True)}


def rate(run: Callable[[], Any], flops: float) -> float:
    """The best GFLOP/s of a function's runs in MEASURED_S seconds."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best, began = float("inf"), clock()
    while clock() - began < MEASURED_S:
        started = clock()
        run()
        best = min(best, clock() - started)
    return flops / best / 1e9


def compare_layer(weight: torch.Tensor, tokens: int) -> dict[str, float]:
    """The rates of one linear layer, plain and packed, and how far the results differ."""
    out_features, in_features = weight.shape
    packed = weight.detach().to_mkldnn()
    x = torch.randn(tokens, in_features).to(weight.dtype)
    flops = 2 * tokens * weight.numel()
    exact, other = F.linear(x, weight), packed_linear(x, packed, None)
    return {
        "tokens": tokens,
        "in_features": in_features,
        "out_features": out_features,
        "plain": rate(lambda: F.linear(x, weight), flops),
        "packed": rate(lambda: packed_linear(x, packed, None), flops),
        "relative_error": float((exact - other).abs().max() / exact.abs().max()),
    }


@torch.inference_mode()
def measure_layers(model: nn.Module) -> list[dict[str, float]]:
    """The rates of square products, and of each shape of linear layer in `model`."""
    square = torch.randn(1_024, 1_024)
    single, half = compare_layer(square, 1_024), compare_layer(square.bfloat16(), 1_024)
    print(
        f"square product, GFLOP/s: MKL {single['plain']:.0f}, oneDNN {single['packed']:.0f}, "
        f"bfloat16 {half['plain']:.0f}, packed {half['packed']:.0f}"
    )
    weights = {tuple(m.weight.shape): m.weight for m in model.modules() if type(m) is nn.Linear}
    rows = [compare_layer(weight, tokens) for weight in weights.values() for tokens in TOKENS]
    for row in rows:
        print(
            f"{row['tokens']:6} x {row['in_features']:5} → {row['out_features']:6}: "
            f"plain {row['plain']:6.0f} GFLOP/s, packed {row['packed']:6.0f}, "
            f"{row['packed'] / row['plain']:.2f} x, differ by {row['relative_error']:.0e}"
        )
    return [single, half, *rows]


@contextmanager
def time_in_linear(model: nn.Module) -> Iterator[list[float]]:
    """A list that gets the CPU seconds, in the model's thread, of every forward of a linear layer."""
    began: list[float] = []
    seconds_by_call: list[float] = []

    def begin(*_: Any) -> None:
        began.append(time.thread_time())

    def end(*_: Any) -> None:
        seconds_by_call.append(time.thread_time() - began.pop())

    hooks: list[Any] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(begin))
            hooks.append(layer.register_forward_hook(end))
    yield seconds_by_call
    for hook in hooks:
        hook.remove()


def set_way(model: nn.Module, *, fused: bool, packed: bool) -> None:
    """Run the model's modules in one of WAYS. SystemExit if its layers cannot be packed."""
    unfuse_layers(model)
    unpack_linear_layers(model)
    if fused:
        fuse_layers(model)
    os.environ[VARIABLE] = "packed"
    if packed and not pack_linear_layers(model):
        raise SystemExit("the model's linear layers cannot be packed on this processor")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Compare linear layers and fused modules on a CPU.")
    parser.add_argument("--model", default="demo", help="demo, gpt2-small, a folder or a hub name")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tool", default="Calculator")
    parser.add_argument("--corpus", nargs="+", default=["demo/pages"])
    parser.add_argument("--max-tokens", type=int, default=112)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as an annotating actor has")
    return parser.parse_args(argv)


def main() -> None:
    """Command line."""
    args = parse()
    torch.set_num_threads(args.threads)
    options = ["--k", "5", "--m", "5", "--tau-s", "0", "--texts", str(args.texts), "--dtype", args.dtype]
    options += ["--corpus", *args.corpus, "--max-tokens", str(args.max_tokens)]
    os.environ.pop(VARIABLE, None)
    workload = Workload.create(args.model, args.tool, parse_annotate(options))
    model = workload.model.model
    chosen = any("forward" in vars(layer) for layer in model.modules() if isinstance(layer, nn.Linear))
    layers = measure_layers(model)
    runs: dict[str, list[Any]] = {way: [] for way in WAYS}
    shares: dict[str, float] = {}
    for _ in range(args.rounds):
        for way, (fused, packed) in WAYS.items():
            set_way(model, fused=fused, packed=packed)
            with time_in_linear(model) as seconds_by_call:
                run = run_engine(way, workload.annotator(), workload.model, workload.texts)[0]
            runs[way].append(run)
            shares[way] = sum(seconds_by_call) / run.timing["cpu_s"]
    engine: dict[str, Any] = {}
    for way, done in runs.items():
        seconds = [run.timing["cpu_s"] for run in done]
        pairs = zip(runs["plain"], done, strict=True)
        ratios = [plain.timing["cpu_s"] / run.timing["cpu_s"] for plain, run in pairs]
        agreement = compare_calls(runs["plain"][0].calls, done[0].calls, workload.settings.tau_f)
        engine[way] = {
            "texts_per_cpu_s": round(len(workload.texts) / statistics.median(seconds), 2),
            "ratio": round(statistics.median(ratios), 3),
            "linear_share": round(shares[way], 3),
            "against_plain": agreement,
        }
        print(
            f"engine, {way:6}: {engine[way]['texts_per_cpu_s']:6.2f} texts per CPU second, "
            f"{engine[way]['ratio']:.3f} x plain, {100 * shares[way]:.0f} % in linear layers; "
            f"kept {agreement['kept']}, {'the same' if agreement['same_kept'] else 'NOT THE SAME'}, "
            f"losses within {agreement['max_loss_difference']:.0e}"
        )
    print(f"chosen on this processor: {'packed' if chosen else 'plain'} linear layers")
    found = {"layers": layers, "engine": engine, "chosen": chosen}
    print(f"written: {results.write('linear', vars(args), [found])}")


if __name__ == "__main__":
    main()
