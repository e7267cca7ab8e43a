"""score_insertions beside a plain loop of transformers, on insertions that share texts.

    python -m bench.score [--model demo/models/annotator] [--corpus demo/pages] [--texts 100] [--each 10]

Each text gets `--each` calls of the calculator with a result, and their forms without it, at random
positions. The plain loop runs one full forward for each of the three forms of an insertion, one sequence at
a time, as a user of transformers would write it. Out: insertions per second of both, for insertions before
the text and at the position, and the largest difference of their losses; runs/bench/score.json. The command
fails if a loss differs by more than 1e-4 (in float32).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from bench import results
from bench.measuring import measured
from pipeline.base.config import CorpusConfig, ModelConfig
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.filtering import WEIGHTS
from pipeline.method.insertions import Insertion, Place, score_insertions
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.syntax.calls import linearise

TOLERANCE = 1e-4
ROUNDS = 3


def make_insertions(model: LanguageModel, corpus: Sequence[str], texts: int, each: int) -> list[Insertion]:
    """`each` calls at random positions of each of the first `texts` texts of a corpus."""
    config = CorpusConfig(paths=tuple(corpus), max_tokens=200)
    random = np.random.default_rng(0)
    read = read_corpus(list_files(config), config, lambda text: len(model.encode([text])[0].ids))
    insertions = []
    for text in islice((text.text for text in read if not text.skipped), texts):
        [encoded] = model.encode([text])
        for position in random.choice(encoded.starts[encoded.starts > 0], each):
            a, b = (int(number) for number in random.integers(2, 100, 2))
            call = linearise("Calculator", f"{a} + {b}")
            result = linearise("Calculator", f"{a} + {b}", str(a + b))
            insertions.append(Insertion(text, int(position), result, call))
    return insertions


@torch.inference_mode()
def plain_losses(engine: LanguageModel, item: Insertion, place: Place) -> dict[str, float]:
    """The three losses, by one forward each."""
    [x] = engine.encode([item.text])
    index = int(np.flatnonzero(x.starts == item.position)[0])
    losses = {}
    for form, z in {"plus": item.insertion, "empty": "", "call": item.without_result or ""}.items():
        z_ids = tokenize_continuations(engine.tokenizer, [z])[0].ids.tolist() if z else []
        before = x.ids[:index].tolist()
        parts = [*z_ids, *before] if place == "prefix" else [*before, *z_ids]
        ids = [*engine.call_tokens.bos, *parts, *x.ids[index:].tolist()]
        first = len(engine.call_tokens.bos) + len(parts)
        logits = engine.model(input_ids=torch.tensor([ids], device=engine.device)).logits[0]
        logprobs = logits.float().log_softmax(-1)[first - 1 : first + 4].cpu()
        targets = ids[first : first + 5]
        scored = [float(logprobs[row, token]) for row, token in enumerate(targets)]
        losses[form] = -float(WEIGHTS[: len(scored)] @ scored)
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo/models/annotator")
    parser.add_argument("--corpus", nargs="+", default=["demo/pages"])
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--each", type=int, default=10)
    args = parser.parse_args()
    engine = load_language_model(ModelConfig(path=args.model, dtype="float32"))
    insertions = make_insertions(engine, args.corpus, args.texts, args.each)
    report = {}
    places: tuple[Place, ...] = ("prefix", "position")
    for place in places:
        seconds: dict[str, list[float]] = {"score": [], "plain": []}
        for _ in range(ROUNDS):
            with measured(engine.device) as timing:
                scores = score_insertions(engine, insertions, place=place)
            seconds["score"].append(timing["wall_s"])
            with measured(engine.device) as timing:
                plain = [plain_losses(engine, item, place) for item in insertions]
            seconds["plain"].append(timing["wall_s"])
        difference = max(
            abs(getattr(score, f"l_{form}") - loss)
            for score, losses in zip(scores, plain, strict=True)
            for form, loss in losses.items()
        )
        rate = {name: len(insertions) / statistics.median(times) for name, times in seconds.items()}
        ratio = rate["score"] / rate["plain"]
        report[place] = {**rate, "ratio": ratio, "largest_difference": difference}
        print(
            f"{place:<8}  {rate['score']:8.1f} insertions/s, plain loop {rate['plain']:6.1f}: {ratio:.1f} x; "
            f"largest difference {difference:.1e} nats"
        )
    print(results.write("score", vars(args) | {"insertions": len(insertions)}, report))
    return int(any(place["largest_difference"] > TOLERANCE for place in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
