"""Check that an annotating process leaks no memory: its resident set every thousand texts.

    python -m bench.flat [--texts 10000] [--tool Calculator]

The bare engine annotates the demo's texts with the demo's model and settings, again and again under
new ids, in batches of 64. Limit: after the last thousand texts the process has at most 5 % more
memory than after the first thousand. Out: a line per thousand, and runs/bench/flat.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import torch

from bench import results
from pipeline.base.config import AnnotateConfig
from pipeline.base.records import Text
from pipeline.cli.recipes import demo
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model
from pipeline.method.annotator import Annotator
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.contract.declarations import PACKAGED
from tools_service.serving.local import start_local_tools

MAX_GROWTH = 0.05
INTERVAL = 1_000


def endless_texts(config: AnnotateConfig) -> Iterator[Text]:
    """The corpus again and again, each time with other text ids and so with other draws."""
    counter = TokenCounter(config.model.path)
    for repetition in count():
        for text in read_corpus(list_files(config.corpus), config.corpus, counter):
            yield replace(text, text_id=(text.text_id + repetition) % 2**62)


def resident_mib() -> float:
    """The resident set of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the memory of an annotating process.")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--tool", nargs="+", choices=PACKAGED, default=["Calculator", "Calendar"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = demo().annotate
    method = config.method.model_copy(update={"tools": tuple(args.tool)})
    tools = start_local_tools(config.tools, method.tools)
    annotator = Annotator(load_language_model(config.model), tools, method)
    texts, done, resident = endless_texts(config), 0, {}
    while done < args.texts:
        for annotation in annotator.annotate(list(islice(texts, config.ray.texts_per_batch))):
            annotation.to_row()
            done += 1
        if done // INTERVAL > len(resident):
            resident[done] = round(resident_mib(), 1)
            print(f"{done:7} texts: {resident[done]:8.1f} MiB", flush=True)
    sizes = list(resident.values())
    growth = sizes[-1] / sizes[0] - 1
    print(f"from the first thousand to the last: {growth:+.1%} (limit {MAX_GROWTH:.0%})")
    print(f"written: {results.write('flat', vars(args), {'resident_mib': resident, 'growth': growth})}")


if __name__ == "__main__":
    main()
