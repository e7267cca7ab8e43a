"""Attention over a prompt: its keys and values shared by all rows, or copied into every row.

    python -m bench.attention

Shared: a token attends to the prompt and to its own row separately, and the two results are
combined by their log-sum-exps (torch's flash-attention kernel for the CPU returns them), as in the
engine. Copied: one attention over a longer row. Shapes are those of the demo's model, float32,
one thread. Out: a table of CPU times with their ratio and the time of the copy itself, and
runs/bench/attention.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench import results
from pipeline.engine.partial_attention import attend_partially, merge

HEADS, SIZE, PROMPT = 4, 48, 220
SHAPES = {  # rows, tokens fed in each, cache slots of each row's own
    "prefill": (32, 235, 235),
    "many branches": (32, 40, 300),
    "few branches": (32, 8, 300),
    "the last rows": (8, 4, 300),
}
_REPETITIONS = 7


def milliseconds(work: Callable[[], Any]) -> float:
    """The lowest CPU time of several runs, after one to warm up."""
    work()
    best = float("inf")
    for _ in range(_REPETITIONS):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return 1e3 * best


def compare(rows: int, queries: int, slots: int) -> dict[str, float]:
    """Time both variants for one shape. AssertionError if their results differ."""
    query = torch.randn(rows, HEADS, queries, SIZE)
    prompt = [torch.randn(1, HEADS, PROMPT, SIZE) for _ in range(2)]  # keys and values
    own = [torch.randn(rows, HEADS, slots, SIZE) for _ in range(2)]  # keys and values
    hidden = torch.rand(rows, 1, queries, slots) < 0.4
    own_mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
    full_mask = torch.nn.functional.pad(own_mask, (PROMPT, 0))

    def copy_prompt() -> list[torch.Tensor]:
        pairs = zip(prompt, own, strict=True)
        return [torch.cat([common.expand(rows, -1, -1, -1), row], dim=2) for common, row in pairs]

    def copied() -> torch.Tensor:
        return scaled_dot_product_attention(query, *full, attn_mask=full_mask)

    def shared() -> torch.Tensor:
        flat = query.transpose(0, 1).reshape(1, HEADS, rows * queries, SIZE)
        over_prompt, prompt_lse = attend_partially(flat, *prompt)
        over_own, own_lse = attend_partially(query, *own, own_mask)
        over_prompt = over_prompt.reshape(HEADS, rows, queries, SIZE).transpose(0, 1)
        prompt_lse = prompt_lse.reshape(HEADS, rows, queries).transpose(0, 1)
        return merge(over_own, own_lse, over_prompt, prompt_lse)

    full = copy_prompt()
    torch.testing.assert_close(shared(), copied(), atol=1e-4, rtol=1e-4)
    times = {"copied_ms": milliseconds(copied), "shared_ms": milliseconds(shared)}
    return times | {"copying_ms": milliseconds(copy_prompt)}


def main() -> None:
    """Command line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = {}
    for name, shape in SHAPES.items():
        measured[name] = times = compare(*shape)
        print(
            f"{name:14} copied {times['copied_ms']:7.2f} ms, shared {times['shared_ms']:7.2f} ms = "
            f"{times['shared_ms'] / times['copied_ms']:.2f}; copying {times['copying_ms']:.2f} ms",
            flush=True,
        )
    print(f"written: {results.write('attention', SHAPES, measured)}")


if __name__ == "__main__":
    main()
