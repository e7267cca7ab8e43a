"""Linear layers on this CPU: MKL against oneDNN with packed weights, alone and in the engine.

    python -m bench.linear [--model demo] [--texts 64] [--rounds 3] [--threads 1]

First the rate of each kind of linear layer in the model with 64 and 1,024 tokens, and the largest
difference, relative to the largest number. Then the engine annotates the same texts for the
calculator with plain and with packed layers, in turns; both must keep the same calls. Out: a table,
and runs/bench/linear.json. The decision that the model's loading takes here is printed, too
(tools_service/base/packed_linear.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench import results
from bench.annotate import compare_calls
from bench.annotate import parse as parse_annotate
from bench.systems import run_engine
from bench.workload import Workload
from tools_service.base.packed_linear import VARIABLE, pack_linear_layers, packed_linear

TOKENS = (64, 1_024)
MEASURED_S = 0.3


def rate(run: Callable[[], Any], flops: float) -> float:
    """The best GFLOP/s of a function's runs in MEASURED_S seconds."""
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MEASURED_S:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return flops / best / 1e9


@torch.inference_mode()
def measure_layers(model: nn.Module) -> list[dict[str, float]]:
    """The rates of each shape of linear layer in `model`."""
    layers = {tuple(m.weight.shape): m for m in model.modules() if type(m) is nn.Linear}
    rows = []
    for (out_features, in_features), layer in layers.items():
        weight, packed = layer.weight, layer.weight.detach().to_mkldnn()
        for tokens in TOKENS:
            x = torch.randn(tokens, in_features)
            flops = 2 * tokens * in_features * out_features
            exact, other = F.linear(x, weight), packed_linear(x, packed, None)
            row = {
                "tokens": tokens,
                "in_features": in_features,
                "out_features": out_features,
                "mkl": rate(lambda x=x, weight=weight: F.linear(x, weight), flops),
                "onednn": rate(lambda x=x, packed=packed: packed_linear(x, packed, None), flops),
                "relative_error": float((exact - other).abs().max() / exact.abs().max()),
            }
            rows.append(row)
            print(
                f"{tokens:6} x {in_features:5} → {out_features:6}: MKL {row['mkl']:6.0f} GFLOP/s, "
                f"oneDNN packed {row['onednn']:6.0f}, {row['onednn'] / row['mkl']:.2f} x, "
                f"differ by {row['relative_error']:.0e}"
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare linear layers through MKL and oneDNN.")
    parser.add_argument("--model", default="demo", help="demo, gpt2-small, a folder or a hub name")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as an annotating actor has")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = ["--k", "5", "--m", "5", "--tau-s", "0", "--texts", str(args.texts)]
    workloads = {}
    for way in ("plain", "packed"):
        os.environ[VARIABLE] = way
        workloads[way] = Workload.create(args.model, "Calculator", parse_annotate(options))
    layers = measure_layers(workloads["plain"].model.model)
    runs: dict[str, list[Any]] = {"plain": [], "packed": []}
    for _ in range(args.rounds):
        for way, workload in workloads.items():
            runs[way].append(run_engine(way, workload.annotator(), workload.model, workload.texts)[0])
    speeds = {}
    for way, done in runs.items():
        cpu_s = statistics.median(run.timing["cpu_s"] for run in done)
        speeds[way] = {"texts_per_cpu_s": round(len(workloads[way].texts) / cpu_s, 2)}
        print(f"engine, {way} layers: {speeds[way]['texts_per_cpu_s']} texts per CPU second")
    tau_f = workloads["plain"].settings.tau_f
    agreement = compare_calls(runs["plain"][0].calls, runs["packed"][0].calls, tau_f)
    os.environ[VARIABLE] = "auto"
    chosen = pack_linear_layers(
        Workload.create(args.model, "Calculator", parse_annotate(options)).model.model
    )
    print(f"packed against plain: {agreement}\nchosen on this processor: {'oneDNN' if chosen else 'MKL'}")
    found = {"layers": layers, "engine": speeds, "packed_against_plain": agreement, "chosen": chosen}
    print(f"written: {results.write('linear', vars(args), [found])}")


if __name__ == "__main__":
    main()
