"""The common parts of the demo's trainings: a tokenizer, an optimizer, a loop that resumes.

A CPU suffices: bfloat16 arithmetic with float32 master weights, Muon for the matrices and AdamW for
the rest. A training is a folder with ``tokenizer``, ``checkpoint.pt``, ``log.jsonl`` and at the end
``model``. The same command resumes it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tools_service.base.checkpoints import load_tokenizer
from tools_service.base.files import apply_umask

Batch = TypeVar("Batch")

# Two digits per token, the leading space included: numbers to 99 are one token, to 9,999 two tokens.
SPLIT = r" ?\d{1,2}| ?\p{L}+|\n+| ?[^\s\p{L}\d]+|\s+"


def byte_level_bpe(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer of `vocabulary` tokens; `special` are the first ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_of(output: Path, train: Callable[[], PreTrainedTokenizerBase]) -> Any:
    """The tokenizer of the training in `output`; trained by `train` at the first start."""
    folder = output / "tokenizer"
    if not folder.exists():
        train().save_pretrained(folder)
    return load_tokenizer(str(folder), "tokenizer")


class Trainer:
    """Optimizer steps, checkpoints and the export of one model."""

    def __init__(
        self, model: PreTrainedModel, steps: int, device: str, rate_scales: Mapping[str, float] | None = None
    ) -> None:
        """`rate_scales` scales the learning rate of matrices, by the end of their names."""
        self.steps, self.device, self.step = steps, device, 0
        self.model = model.to(device)
        self.master = {
            name: p.detach().float().clone().requires_grad_() for name, p in self.model.named_parameters()
        }
        self.model = self.model.to(torch.bfloat16)
        embeddings = {
            id(p)
            for part in self.model.modules()
            if isinstance(part, torch.nn.Embedding)
            for p in part.parameters()
        }
        matrices = {
            name for name, p in self.model.named_parameters() if p.ndim == 2 and id(p) not in embeddings
        }
        groups: dict[float, list[torch.Tensor]] = {}
        for name in sorted(matrices):
            scale = next((by for end, by in (rate_scales or {}).items() if name.endswith(end)), 1.0)
            groups.setdefault(scale, []).append(self.master[name])
        muon = [{"params": group, "lr": 0.02 * scale} for scale, group in groups.items()]
        others = [p for name, p in self.master.items() if name not in matrices]
        self.optimizers = [
            torch.optim.Muon(muon, lr=0.02, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer step along the gradient of `loss`."""
        loss.backward()
        progress = self.step / self.steps
        scale = min(1.0, (self.step + 1) / 100) * min(1.0, max(0.02, (1 - progress) / 0.4))
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        for rate, group in zip(self.rates, groups, strict=True):
            group["lr"] = rate * scale
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            self.master[name].grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.master.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._copy_master()
        self.step += 1

    def _copy_master(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.master[name])

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {"step": self.step, "master": {k: v.detach() for k, v in self.master.items()}}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Restore a checkpoint."""
        state = torch.load(path, map_location=self.device)
        self.step = state["step"]
        with torch.no_grad():
            for name, parameter in self.master.items():
                parameter.copy_(state["master"][name])
        self._copy_master()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the model as bfloat16 safetensors, with its tokenizer."""
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        apply_umask(folder)


def command_line(description: str | None, output: str, steps: int) -> argparse.ArgumentParser:
    """The options of a training: --output, --steps, --device, --save-every, --export."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--output", type=Path, default=Path(output), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--export", type=Path, help="only export the last checkpoint's model to this folder")
    return parser


def run(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    batches: Callable[[int], Iterable[Batch]],
    loss_of: Callable[[Any, Batch], tuple[torch.Tensor, dict[str, float]]],
) -> None:
    """Train from the last checkpoint to the last step and write the model; with --export, only
    write it.

    `batches` takes a seed. `loss_of` returns a batch's loss and values for the log: the number of
    "tokens" processed, and values to average (NaN if there is none). log.jsonl gets a line every 20
    steps.
    """
    checkpoint = args.output / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if args.export:
        trainer.export(args.export, tokenizer)
        return
    source = iter(batches(trainer.step + 1))
    recent: list[dict[str, float]] = []
    since = time.monotonic()
    while trainer.step < trainer.steps:
        loss, values = loss_of(trainer.model, next(source))
        trainer.update(loss)
        recent.append({"loss": loss.item(), **values})
        if trainer.step % 20 == 0:
            _log(args.output, trainer.step, recent, time.monotonic() - since)
            recent, since = [], time.monotonic()
        if trainer.step % args.save_every == 0 or trainer.step == trainer.steps:
            trainer.save(checkpoint)
    trainer.export(args.output / "model", tokenizer)


def _log(output: Path, step: int, recent: list[dict[str, float]], seconds: float) -> None:
    line: dict[str, float] = {"step": step}
    for name in recent[0]:
        if name != "tokens":
            line[name] = torch.tensor([values[name] for values in recent]).nanmean().item()
    line["tokens_per_s"] = round(sum(values["tokens"] for values in recent) / seconds)
    print(json.dumps(line), flush=True)
    with (output / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
