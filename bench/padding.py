"""How much of a fine-tuning step is padding, with and without packing.

    python -m bench.padding                                   # a C* of long texts, at the paper's sizes
    python -m bench.padding --data runs/demo/augmented        # a C* of one's own, at the demo's

In: the lengths of examples: of C*, or drawn (log-normal, median 300 tokens, as of web pages, cut at 1,024).
Out: a table with the positions that the model computes in a step over all workers, the share of them that is
padding, those of the slowest worker in each forward, for which the others wait, and the forwards of each
worker. It loads no model and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.fixtures.small_training import load_examples
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.cli.recipes import RECIPES
from pipeline.finetuning.data.run_size import padding
from tools_service.base.checkpoints import load_tokenizer

_TEXTS, _MEDIAN, _SIGMA = 25_000, 300, 0.8


def drawn_lengths(config: FinetuneConfig) -> NDArray[np.int64]:
    """Lengths of texts as they are on the web."""
    lengths = np.random.default_rng(0).lognormal(np.log(_MEDIAN), _SIGMA, _TEXTS)
    return np.clip(lengths, 2, config.sequence_length).astype(np.int64)


def lengths_of(config: FinetuneConfig) -> NDArray[np.int64]:
    """Lengths of the examples that a run trains on."""
    tokenizer = load_tokenizer(config.model.path, "model.path")
    return load_examples(config, tokenizer).train.lengths


def table_of(lengths: NDArray[np.int64], config: FinetuneConfig) -> Table:
    """One row without packing, one with it."""
    table = Table(
        title=f"{len(lengths):,} examples, mean {lengths.mean():.0f} tokens; {config.workers} workers, "
        f"batches of {config.batch_size}, {config.micro_batch_size} rows of {config.sequence_length:,} tokens"
    )
    for heading in ("packing", "positions a step", "padding", "of the slowest worker", "forwards"):
        table.add_column(heading, justify="right")
    for packing in (False, True):
        found = padding(lengths, config.model_copy(update={"packing": packing}))
        numbers = (
            f"{found.positions:,.0f}",
            f"{found.padding:.1%}",
            f"{found.slowest:,.0f}",
            f"{found.forwards:.1f}",
        )
        table.add_row("yes" if packing else "no", *numbers)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.padding", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a C* in place of drawn lengths, at the demo's sizes")
    data = parser.parse_args(argv).data
    if data is None:
        config = FinetuneConfig()
        lengths = drawn_lengths(config)
    else:
        config = RECIPES["demo"]().finetune.model_copy(update={"data": data})
        lengths = lengths_of(config)
    Console().print(table_of(lengths, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
