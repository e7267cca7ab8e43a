"""A prompt's keys and values, once for all texts or copied into each text's row: what attention takes.

    python -m bench.attention

Shared, a token's attention is that over the prompt and that over its own row, put together by their
log-sum-exps (torch's CPU kernel for flash attention gives them). Copied, it is one attention over a longer
row, as the engine has it. Shapes are the demo's model's, float32, one thread. Out: a table of CPU times and
their ratio, and runs/bench/attention.json. The copying itself is in the last column.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench import results

HEADS, SIZE, PROMPT = 4, 48, 220
SHAPES = {  # rows, tokens fed in each, columns of a row's own
    "contexts": (32, 235, 235),
    "many branches": (32, 40, 300),
    "few branches": (32, 8, 300),
    "the last rows": (8, 4, 300),
}
_TIMES = 7


def milliseconds(work: Callable[[], Any]) -> float:
    """CPU time of the quickest of some runs."""
    work()
    best = float("inf")
    for _ in range(_TIMES):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return 1e3 * best


def compare(rows: int, queries: int, columns: int) -> dict[str, float]:
    """Both ways for one shape; they must agree."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    query = torch.randn(rows, HEADS, queries, SIZE)
    prompt = [torch.randn(1, HEADS, PROMPT, SIZE) for _ in range(2)]
    own = [torch.randn(rows, HEADS, columns, SIZE) for _ in range(2)]
    hidden = torch.rand(rows, 1, queries, columns) < 0.4
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
    wide = torch.nn.functional.pad(mask, (PROMPT, 0))

    def joined() -> list[torch.Tensor]:
        pairs = zip(prompt, own, strict=True)
        return [torch.cat([one.expand(rows, -1, -1, -1), other], dim=2) for one, other in pairs]

    def copied() -> torch.Tensor:
        return scaled_dot_product_attention(query, *both, attn_mask=wide)

    def shared() -> torch.Tensor:
        flat = query.transpose(0, 1).reshape(1, HEADS, rows * queries, SIZE)
        first, lse = flash(flat, *prompt, 0.0, False)
        second, other = flash(query, *own, 0.0, False, attn_mask=mask)
        first = first.view(HEADS, rows, queries, SIZE).transpose(0, 1)
        share = torch.sigmoid(lse.view(HEADS, rows, queries).transpose(0, 1) - other)
        return second + (first - second) * share[..., None]

    both = joined()
    torch.testing.assert_close(shared(), copied(), atol=1e-4, rtol=1e-4)
    times = {"copied_ms": milliseconds(copied), "shared_ms": milliseconds(shared)}
    return times | {"copying_ms": milliseconds(joined)}


def main() -> None:
    """Command line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name, shape in SHAPES.items():
        found[name] = compare(*shape)
        times = found[name]
        print(
            f"{name:14} copied {times['copied_ms']:7.2f} ms, shared {times['shared_ms']:7.2f} ms = "
            f"{times['shared_ms'] / times['copied_ms']:.2f}; copying {times['copying_ms']:.2f} ms",
            flush=True,
        )
    print(f"written: {results.write('attention', SHAPES, found)}")


if __name__ == "__main__":
    main()
