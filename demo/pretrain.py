"""Train the annotator: a byte-level BPE tokenizer and a small Llama on the pages of pretraining.py.

    python -m demo.pretrain --output runs/pretrain            # resumes where it stopped
    python -m demo.pretrain --output runs/pretrain --export demo/models/annotator

CPU suffices (bfloat16 arithmetic over float32 master weights); a GPU is faster. The result loads with
AutoModelForCausalLM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import lexicon, pretraining

VOCABULARY = 2560
BUCKETS = (64, 88, 120, 176, 240, 304, 384, 480)  # padded lengths; a longer document is drawn anew
TOKENS_PER_STEP = 6_144
BOS = "<s>"
# Two digits a token, the space with the first of them: a number is one token up to 99 and two up to 9,999.
SPLIT = r" ?\d{1,2}| ?\p{L}+|\n+| ?[^\s\p{L}\d]+|\s+"


def train_tokenizer(seed: int = 0, documents: int = 12_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over pretraining documents; every number of up to two digits becomes one token."""
    rng = Random(seed)
    # Each of these shall be one token, with a space before it and without.
    words = [
        *(f"{n}" for n in range(100)),
        *(f"{n:02d}" for n in range(10)),
        *lexicon.FEMALE,
        *lexicon.MALE,
        *lexicon.MONTHS,
    ]
    numbers = " ".join(f"{word} ({word}" for word in words)

    def corpus() -> Iterator[str]:
        for _ in range(documents):
            yield "".join(text for text, _ in pretraining.document(rng))
        for _ in range(400):
            yield numbers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=1024
    )


def architecture() -> LlamaConfig:
    """The model: 5 layers of width 192, 2.6 million parameters."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def attention(
    module: torch.nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention, q k v (B, H, T, D), as plain products: on CPU faster than fused."""
    size = q.shape[-2]
    future = torch.full((size, size), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    weights = torch.softmax(q @ k.transpose(-1, -2) * scaling + future, dim=-1)
    return (weights @ v).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", attention)


class Batches:
    """Endless batches of one bucket each: token ids (B, T) and loss weights (B, T), float32, 0 at padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._encode = tokenizer.backend_tokenizer.encode_batch
        self._rng = Random(seed)
        self._waiting: dict[int, list[tuple[list[int], list[float]]]] = {size: [] for size in BUCKETS}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for ids, weights in self._documents(256):
                size = next((size for size in BUCKETS if len(ids) <= size), None)
                if size is None:
                    continue
                self._waiting[size].append((ids, weights))
                if len(self._waiting[size]) == TOKENS_PER_STEP // size:
                    yield collate(self._waiting[size], size)
                    self._waiting[size] = []

    def _documents(self, count: int) -> Iterator[tuple[list[int], list[float]]]:
        documents = [pretraining.document(self._rng) for _ in range(count)]
        texts = [text for document in documents for text, _ in document]
        encoded = iter(self._encode(texts, add_special_tokens=False))
        for document in documents:
            ids, weights = [0], [0.0]
            for _, weight in document:
                piece = next(encoded).ids
                ids += piece
                weights += [weight] * len(piece)
            yield ids, weights


def collate(examples: list[tuple[list[int], list[float]]], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to `size` on the right with id 0 and weight 0."""
    ids = torch.tensor([row + [0] * (size - len(row)) for row, _ in examples])
    weights = torch.tensor([row + [0.0] * (size - len(row)) for _, row in examples])
    return ids, weights


class Trainer:
    """bfloat16 forward and backward, float32 master weights; Muon for the matrices, AdamW for the rest."""

    def __init__(self, steps: int, device: str) -> None:
        torch.manual_seed(0)
        self.steps, self.device = steps, device
        config = architecture()
        config._attn_implementation = "plain"
        self.model = LlamaForCausalLM(config).to(device)
        self.master = {
            name: p.detach().float().clone().requires_grad_() for name, p in self.model.named_parameters()
        }
        self.model = self.model.to(torch.bfloat16)
        matrices = [p for name, p in self.master.items() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.master.items() if p.ndim != 2 or "embed" in name]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.step = 0

    def train_step(self, ids: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
        """One optimizer step; the weighted mean loss and the mean loss of the heaviest tokens, in nats."""
        ids, weights = ids.to(self.device), weights.to(self.device)[:, 1:]
        states = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        kept = weights > 0
        logits = functional.linear(states[kept], self.model.lm_head.weight)
        losses = functional.cross_entropy(logits.float(), ids[:, 1:][kept], reduction="none")
        weight = weights[kept]
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        self._update()
        heavy = losses.detach()[weight >= 2.0]
        return loss.item(), heavy.mean().item() if len(heavy) else float("nan")

    def _update(self) -> None:
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
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.master[name])
        self.step += 1

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {"step": self.step, "master": {k: v.detach() for k, v in self.master.items()}}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, map_location=self.device)
        self.step = state["step"]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.master[name].copy_(state["master"][name])
                parameter.copy_(self.master[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write the model as bfloat16 safetensors, with its tokenizer."""
        model = LlamaForCausalLM(architecture())
        model.load_state_dict({k: v.detach().cpu() for k, v in self.master.items()}, strict=False)
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"), help="checkpoint and log")
    parser.add_argument(
        "--steps", type=int, default=4_000, help=f"optimizer steps of {TOKENS_PER_STEP} tokens"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--export", type=Path, help="only write the model of the last checkpoint to this folder"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer_file = args.output / "tokenizer"
    if not tokenizer_file.exists():
        train_tokenizer().save_pretrained(tokenizer_file)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_file)
    trainer = Trainer(args.steps, args.device)
    checkpoint = args.output / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if args.export:
        trainer.export(args.export, tokenizer)
        return
    run(trainer, tokenizer, args.output, args.save_every)
    trainer.export(args.output / "model", tokenizer)


def run(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, output: Path, save_every: int) -> None:
    """Train to the last step; one line of log.jsonl every 20 steps."""
    batches = iter(Batches(tokenizer, seed=trainer.step + 1))
    recent: list[tuple[float, float]] = []
    started, first = time.monotonic(), trainer.step
    while trainer.step < trainer.steps:
        recent.append(trainer.train_step(*next(batches)))
        if trainer.step % 20 == 0:
            mean = torch.tensor(recent).nanmean(0).tolist()
            rate = (trainer.step - first) * TOKENS_PER_STEP / (time.monotonic() - started)
            line = {"step": trainer.step, "loss": mean[0], "heavy": mean[1], "tokens_per_s": round(rate)}
            print(json.dumps(line), flush=True)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            recent.clear()
        if trainer.step % save_every == 0 or trainer.step == trainer.steps:
            trainer.save(output / "checkpoint.pt")


if __name__ == "__main__":
    main()
