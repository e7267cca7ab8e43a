"""Whether fine-tuning computes what a plain loop in PyTorch computes, however it is divided and stored.

    python -m bench.finetune_equality                                  # one and two workers, ZeRO 0 to 3
    python -m bench.finetune_equality --readers indexed streamed       # and through Ray Data
    python -m bench.finetune_equality --architectures all --steps 5    # and GPT-2, GPT-J, GPT-NeoX, Qwen

In: nothing; the models are small and random, the texts are made here. Worker processes train over gloo on
loopback with one setting after another; for the streamed reader this process gets the batches of each worker
from a Ray cluster, as Ray Train would give them. Out: the largest difference of a loss from the plain
loop's, which takes the texts one by one, in nats per token, for each setting; exit code 1 if one in float32
is above TOLERANCE. Settings in bfloat16 are shown beside them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from bench.fixtures.small_models import causal_lm, tokenizer
from bench.fixtures.small_training import configuration, load_examples, plain_torch, rows, write
from bench.fixtures.worker_processes import Run, worker_processes
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.batches import Batches, IndexedBatches, StepBatch
from pipeline.finetuning.data.examples import Split
from pipeline.finetuning.step.deepspeed_settings import packaged_file
from tools_service.base.checkpoints import load_model, load_tokenizer

TOLERANCE = 1e-4  # nats per token, in float32
ARCHITECTURES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "qwen3")
_TEXTS = 45  # 40 to train on: a batch of 8 ends an epoch after 5 steps
_NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to do the same training."""

    name: str
    overrides: dict[str, Any]  # fields of the configuration
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a worker saw."""

    losses: list[float]  # of each step, nats per token
    norms: list[float | None]  # of the gradients of each step, before clipping
    logits: torch.Tensor  # [1, T, V] after the last step, on the first held-out text
    state_dtypes: set[str]  # types of the optimizer's states


def settings(workers: int, readers: Sequence[str]) -> Iterator[Setting]:
    """The bar of the equality, then what moves, recomputes or rounds."""
    for reader, packing, stage in product(readers, (False, True), (0, 1, 2, 3)):
        name = f"ZeRO-{stage} {reader}{' packed' if packing else ''}"
        yield Setting(name, {"zero_stage": stage, "reader": reader, "packing": packing})
    if workers == 1:
        return
    for stage, name in ((2, "zero2_offload"), (3, "zero3_offload")):
        yield Setting(name, {"zero_stage": stage, "deepspeed": packaged_file(name)})
    yield Setting("ZeRO-3, recomputed", {"zero_stage": 3, "gradient_checkpointing": True})
    for stage in (1, 2, 3):
        yield Setting(f"ZeRO-{stage}", {"zero_stage": stage}, "bfloat16")


def make_inputs(folder: Path, architecture: str, *, tied: bool = False) -> Path:
    """A model in folder/base, with its tokenizer, and C* in folder/augmented."""
    words = tokenizer("pieces" if architecture == "llama" else "bytes")
    fields = {"tie_word_embeddings": tied, **_NO_DROPOUT.get(architecture, {})}
    causal_lm(architecture, len(words), positions=256, **fields).save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    write(folder / "augmented", [rows(_TEXTS)])
    return folder


def configured(folder: Path, setting: Setting, **overrides: Any) -> FinetuneConfig:
    config = configuration(folder, **{"max_steps": 20, **overrides, **setting.overrides})
    model = config.model.model_copy(update={"dtype": setting.dtype})
    return config.model_copy(update={"model": model})


def data_of(config: FinetuneConfig) -> Split:
    return load_examples(config, load_tokenizer(config.model.path, "model.path"))


@dataclass(frozen=True, slots=True)
class GivenBatches:
    """The batches of one worker, made elsewhere."""

    steps: list[StepBatch]

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`, counted from 1."""
        return self.steps[step - 1]


def streamed(config: FinetuneConfig) -> list[GivenBatches]:
    """The batches of all steps by rank, tokenised and streamed by the Ray cluster of this process."""
    from pipeline.finetuning.data.augmented_files import digest, read_index
    from pipeline.finetuning.data.streaming import StepStream
    from pipeline.finetuning.data.tokenizing import prepare

    words = load_tokenizer(config.model.path, "model.path")
    store = prepare(config, words, digest(config.data), read_index(config.data))
    streams = (StepStream(config, store, rank) for rank in range(config.workers))
    return [GivenBatches([batch for _, batch in stream.steps(1)]) for stream in streams]


def train(
    rank: int,
    config: FinetuneConfig,
    save_to: Path | None = None,
    given: Sequence[GivenBatches] | None = None,
) -> Trained:
    """All steps of `config` on one worker; `save_to` gets a checkpoint. Runs in the worker processes."""
    from pipeline.finetuning.checkpoints.checkpointing import save
    from pipeline.finetuning.step.training import Training

    transformers_logging.disable_progress_bar()
    data, words = data_of(config), load_tokenizer(config.model.path, "model.path")
    batches: Batches = given[rank] if given else IndexedBatches(data.train, config, rank)
    training = Training(config, batches, words, rank=rank, device=torch.device("cpu"))
    steps = [training.step(step) for step in range(1, config.max_steps + 1)]
    training.engine.eval()
    with torch.no_grad():
        logits = training.engine(input_ids=probe(data), use_cache=False).logits.float()
    if save_to is not None:
        save(training, save_to, config.max_steps)
    inner = getattr(training.engine.optimizer, "optimizer", training.engine.optimizer)
    states = [value for state in inner.state.values() for value in state.values()]
    dtypes = {str(value.dtype) for value in states if isinstance(value, torch.Tensor)}
    return Trained([step.loss for step in steps], [step.gradient_norm for step in steps], logits, dtypes)


def probe(data: Split) -> torch.Tensor:
    """The tokens of the first held-out text, [1, T]."""
    return torch.tensor(data.held_out[0], dtype=torch.int64)[None]


def plain(config: FinetuneConfig) -> tuple[list[float], list[float], PreTrainedModel]:
    """Losses, gradient norms and the model of the plain loop."""
    torch.set_num_threads(1)
    return plain_torch(config, data_of(config), config.max_steps)


def largest_difference(trained: Sequence[Trained], losses: Sequence[float]) -> float:
    """Between the losses of any worker and those of the plain loop, in nats per token."""
    pairs = [pair for own in trained for pair in zip(own.losses, losses, strict=True)]
    return max(abs(own - loss) for own, loss in pairs)


def _compare(
    run: Run, workers: int, folder: Path, architecture: str, steps: int, readers: Sequence[str]
) -> bool:
    losses, _, _ = plain(configured(folder, Setting("plain", {}), max_steps=steps))
    passed = True
    for setting in settings(workers, readers):
        config = configured(folder, setting, workers=workers, max_steps=steps)
        saved = folder / f"saved-{workers}-{setting.name.replace(' ', '-')}-{setting.dtype}"
        trained = run(train, config, saved, streamed(config) if config.reader == "streamed" else None)
        difference = largest_difference(trained, losses)
        loaded = load_model(AutoModelForCausalLM, str(saved / "model"), "model", dtype="float32")
        with torch.no_grad():
            reloaded = loaded(probe(data_of(config))).logits
        moved = float((reloaded - trained[0].logits).abs().max())
        failed = setting.dtype == "float32" and max(difference, moved) > TOLERANCE
        passed &= not failed
        print(
            f"{architecture:9} {workers} {setting.name:22} {setting.dtype:9} {difference:9.1e} {moved:9.1e}"
            f"{'  ABOVE THE BAR' if failed else ''}",
            flush=True,
        )
    return passed


def _cluster(needed: bool) -> AbstractContextManager[None]:
    from pipeline.runtime.connection import ray_connection
    from tools_service.runtime.resources import ProcessRequest, ResourceRequest

    request = ResourceRequest(processes=(ProcessRequest(of="tokenising task", cpus=1),))
    return ray_connection(request) if needed else nullcontext()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["llama"], choices=["all", *ARCHITECTURES])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--readers", nargs="+", default=["indexed"], choices=["indexed", "streamed"])
    arguments = parser.parse_args()
    chosen = ARCHITECTURES if "all" in arguments.architectures else arguments.architectures
    transformers_logging.disable_progress_bar()
    print("model     workers, setting     type      largest difference of a loss, of a saved model's logit")
    passed = True
    with tempfile.TemporaryDirectory() as name, _cluster("streamed" in arguments.readers):
        folders = {kind: make_inputs(Path(name) / kind, kind, tied=kind == "gpt2") for kind in chosen}
        for workers in arguments.workers:
            with worker_processes(workers) as run:
                for architecture, folder in folders.items():
                    passed &= _compare(run, workers, folder, architecture, arguments.steps, arguments.readers)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
