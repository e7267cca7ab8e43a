"""Which architectures of transformers the engine runs: docs/architectures.md.

    python -m bench.architectures --rows runs/bench/architectures.jsonl --seconds 100
    python -m bench.architectures --rows runs/bench/architectures.jsonl --page docs/architectures.md

In: nothing but transformers. Each type of model that it maps to a causal LM gets a tiny model with random
weights (fixtures/tiny_models.py), in a process of its own. The engine checks it as it checks every model;
what it lets pass is compared with plain forwards up to the longest context that it allows: p(<API>) at
every position, branches as the sampler grows them, and scores, for long and short texts together, with and
without padding. Out: one line of JSON for each type; a type that has a line is not tried again. The page
is written when all types have one.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bench.fixtures.small_models import tokenizer
from bench.fixtures.tiny_models import POSITIONS, SWITCH, tiny_config, tiny_model
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.limits import UNLIMITED
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, PromptCache, causal_mask
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.usage import Usage
from tools_service.base.errors import ToolformerError

TOLERANCE = 1e-3  # nats, in float32
_TYPE_S = 60.0  # a process that takes longer is ended
Verdict = Literal["agrees", "refused", "not tried", "wrong", "traceback"]
_MEANING: dict[Verdict, str] = {
    "agrees": f"loads, and every number is within {TOLERANCE} nats of a plain forward's",
    "refused": "is refused at load, with the reason below",
    "not tried": "transformers makes or runs no tiny model of it here, for the reason below",
    "wrong": "loads, and numbers are off",
    "traceback": "fails without a reason",
}
_FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
_SCALED = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": SWITCH}
_LONGROPE = {**_SCALED, "rope_type": "longrope", **_FACTORS}
_LLAMA3 = {**_SCALED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_FULL = ["full_attention"] * 2
# Further models of some types: name, type, fields.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, as a decoder": ("bert", {"is_decoder": True}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "gpt_neo, global layers only": ("gpt_neo", {"attention_types": [[["global"], 2]]}),
    "lfm2, convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "llama, dynamic NTK": ("llama", {"rope_parameters": {**_SCALED, "rope_type": "dynamic"}}),
    "llama, linear": ("llama", {"rope_parameters": {**_SCALED, "rope_type": "linear"}}),
    "llama, llama3 rotation": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "llama, YaRN": ("llama", {"rope_parameters": {**_SCALED, "rope_type": "yarn"}}),
    "llama, a window that it never reads": ("llama", {"sliding_window": 16}),
    "llama4_text, layers without rotation": ("llama4_text", {"no_rope_layers": [1, 0]}),
    "llama4_text, no temperature": (
        "llama4_text",
        {"attn_temperature_tuning": False, "no_rope_layers": [1, 0]},
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mixtral, window": ("mixtral", {"sliding_window": 16}),
    "phi3, longrope": ("phi3", {"rope_parameters": _LONGROPE}),
    "phi3, longrope and window": ("phi3", {"rope_parameters": _LONGROPE, "sliding_window": 16}),
    "phi3, window": ("phi3", {"sliding_window": 16}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
    "qwen2, window of no layer": ("qwen2", {"use_sliding_window": True, "layer_types": _FULL}),
    "qwen2_moe, window": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3, window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
}


@dataclass(frozen=True)
class Row:
    """What became of one architecture. `limit` and `worst` are of one that loads."""

    name: str
    verdict: Verdict
    reason: str = ""
    limit: int | None = None  # tokens
    worst: float | None = None  # nats
    unpadded: bool = False


def models() -> dict[str, tuple[str, dict[str, Any]]]:
    """The type and the fields of every model to try, by name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    plain: dict[str, tuple[str, dict[str, Any]]] = {
        name: (name, {}) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    return dict(sorted((plain | VARIANTS).items()))


def try_model(name: str, model_type: str, fields: Mapping[str, Any]) -> Row:
    """Make the model, let the engine check it, and compare what it lets pass."""
    try:
        model = tiny_model(tiny_config(model_type, **fields))
        with torch.inference_mode():
            model(input_ids=torch.arange(8)[None], use_cache=False)
    except Exception as error:
        return Row(name, "not tried", f"{type(error).__name__}: {_plain_text(error)}")
    try:
        engine = prepare_language_model(model, tokenizer("bytes"))
        worst = worst_difference(engine)
    except ToolformerError as error:
        return Row(name, "refused", _plain_text(error))
    except Exception as error:
        return Row(name, "traceback", f"{type(error).__name__}: {_plain_text(error)}")
    limit = engine.max_positions
    verdict: Verdict = "agrees" if worst <= TOLERANCE else "wrong"
    return Row(name, verdict, "", None if limit == UNLIMITED else limit, worst, engine.can_unpad)


def worst_difference(engine: LanguageModel) -> float:
    """The largest difference from plain forwards, in nats, in contexts up to the longest allowed."""
    longest = min(engine.max_positions, POSITIONS + 32)
    differences = []
    can_unpad = engine.can_unpad
    for engine.can_unpad in {can_unpad, False}:
        differences += [*_scores(engine, longest), *_branches(engine, longest)]
    engine.can_unpad = can_unpad
    worst = max(differences)
    return worst if math.isfinite(worst) else math.inf


def _scores(engine: LanguageModel, longest: int) -> Iterator[float]:
    """Differences of the scores of sequences of several lengths, scored together."""
    lengths = sorted({2, longest // 4, longest // 2, longest - 1, longest} - {0, 1})
    sequences = [_ids(engine, length, length) for length in lengths]
    wanted = [np.arange(1, length) for length in lengths]
    found, _ = token_logprobs(engine, sequences, wanted, "plus")
    for sequence, scores in zip(sequences, found, strict=True):
        plain = _plain(engine, sequence)[:-1]
        expected = plain[np.arange(len(plain)), sequence[1:]]
        yield float(np.abs(scores - expected).max())


def _branches(engine: LanguageModel, longest: int) -> Iterator[float]:
    """Differences of p(<API>) at all positions of a long and a short text, and of two branches of each."""
    api, steps = engine.call_tokens.api, 2
    prompt, suffix = _ids(engine, 2, 1), _ids(engine, 1, 2)
    room = longest - len(prompt) - len(suffix) - len(api) - steps
    texts = [_ids(engine, max(1, room // 2), 3), _ids(engine, max(1, room // 6), 4)]
    tree = PrefilledBatch(engine, _prompt(engine, prompt, suffix), texts, [Usage() for _ in texts])
    probabilities = tree.api_probabilities()
    contexts = [
        [np.concatenate([prompt, text, suffix, text[:position]]) for position in range(len(text))]
        for text in texts
    ]
    for found, of_text in zip(probabilities, contexts, strict=True):
        for p, context in zip(found, of_text, strict=True):
            behind = np.concatenate([context, api])
            plain = _plain(engine, behind)[len(context) - 1 : -1]
            expected = sum(float(plain[step, token]) for step, token in enumerate(api))
            yield abs(math.log(p) - expected)
    # Branches at the first and at the last position of each text, some tokens long.
    ends = [sorted({0, len(text) - 1}) for text in texts]
    text_index = np.repeat([0, 1], [len(positions) for positions in ends])
    position = np.concatenate(ends)
    tree.branch(text_index, position)
    slot = np.concatenate([np.arange(len(positions)) for positions in ends])
    rows = [
        np.concatenate([contexts[t][p], api])
        for t, p in zip(text_index.tolist(), position.tolist(), strict=True)
    ]
    for step in range(steps):
        tokens = _ids(engine, len(rows), 5 + step)
        found = tree.log_probability(text_index, slot, tokens)
        for row, token, logprob in zip(rows, tokens, found, strict=True):
            yield abs(float(logprob) - float(_plain(engine, row)[-1, token]))
        tree.extend(text_index, slot, slot, tokens)
        rows = [np.append(row, token) for row, token in zip(rows, tokens, strict=True)]


def _prompt(engine: LanguageModel, prompt: np.ndarray, suffix: np.ndarray) -> PromptCache:
    cache, size = KVCache(), len(prompt)
    position_ids = torch.arange(size)[None]
    mask = causal_mask(size, engine.device)
    engine.forward(torch.from_numpy(prompt)[None], position_ids, mask, cache, "prompt", [size])
    return PromptCache(cache, suffix)


def _plain(engine: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities [T, V] by one ordinary forward of transformers, without its cache."""
    with torch.inference_mode():
        [logits] = engine.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits
    logprobs: np.ndarray = logits.double().log_softmax(-1).numpy()
    return logprobs


def _ids(engine: LanguageModel, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, engine.vocabulary_size, count)


def _plain_text(error: BaseException) -> str:
    """The message of an error on one line, without what differs from run to run."""
    return " ".join(str(error).split())[:400]


def run(names: Sequence[str], rows: Path, seconds: float) -> None:
    """Try the models that have no row, each in a process of its own, for about so many seconds."""
    todo, known, began = models(), read(rows), time.monotonic()
    context = multiprocessing.get_context("fork")
    for name in names:
        if name in known or time.monotonic() - began > seconds:
            continue
        queue = context.Queue()
        process = context.Process(target=_child, args=(queue, name, *todo[name]))
        process.start()
        try:
            row = queue.get(timeout=_TYPE_S)
        except Exception:
            row = Row(name, "not tried", f"a tiny model took more than {_TYPE_S:.0f} s")
        process.kill()
        process.join()
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.name}: {row.verdict} {row.limit or ''} {row.reason[:100]}", flush=True)


def _child(queue: Any, name: str, model_type: str, fields: Mapping[str, Any]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    queue.put(try_model(name, model_type, fields))


def read(file: Path) -> dict[str, Row]:
    """The rows of a file, by name; none if there is no file."""
    if not file.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row.name: row for row in rows}


def page(rows: Sequence[Row]) -> str:
    """docs/architectures.md."""
    counts = Counter(row.verdict for row in rows)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "torch"))
    lines = [
        "# Architectures",
        "",
        f"Made by `python -m bench.architectures`, with Python {platform.python_version()}, {versions}, on a",
        "CPU in float32. Each row is a tiny model with random weights: two layers, "
        f"{POSITIONS} positions, windows",
        f"of 16 tokens, rotations that switch at {SWITCH} tokens. A real model of the same type gets its own",
        "limit from its own configuration ([decision 0023](decisions/0023-limits-of-a-model.md)).",
        "A LoRA adapter fits a model whose adapted layers are `Linear` or GPT-2's `Conv1D`; experts of MoE",
        "models mostly are not.",
        "",
        "| verdict | models | meaning |",
        "|---|---:|---|",
        *(f"| {verdict} | {counts[verdict]} | {meaning} |" for verdict, meaning in _MEANING.items()),
        "",
        "*Limit*: the longest context in tokens; none where the architecture names none. *Worst*: the",
        "largest difference in nats, in contexts up to the limit. *Unpadded*: linear layers run no padding.",
        "",
        "| model | verdict | limit | worst | unpadded |",
        "|---|---|---:|---:|---|",
    ]
    loaded = [row for row in rows if row.worst is not None]
    for row in loaded:
        unpadded = "yes" if row.unpadded else "no"
        lines.append(f"| {row.name} | {row.verdict} | {row.limit or 'none'} | {row.worst:.0e} | {unpadded} |")
    lines += ["", "| model | verdict | reason |", "|---|---|---|"]
    for row in rows:
        if row.worst is None:
            reason = row.reason.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| {row.name} | {row.verdict} | {reason} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Try every architecture of transformers with the engine.")
    parser.add_argument("--rows", type=Path, default=Path("runs/bench/architectures.jsonl"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after about so long")
    parser.add_argument("--only", nargs="*", help="names of models; without it, all")
    parser.add_argument("--page", type=Path, help="write the table if no model is missing")
    args = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    names = args.only or list(models())
    run(names, args.rows, args.seconds)
    rows = read(args.rows)
    missing = [name for name in models() if name not in rows]
    print(f"{len(rows)} models have a row, {len(missing)} are missing")
    if args.page and not missing:
        args.page.write_text(page([rows[name] for name in models()]), encoding="utf-8")


if __name__ == "__main__":
    main()
