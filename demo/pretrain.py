"""Train the annotator: byte-level BPE and a small Llama on the documents of pretraining.py.

    python -m demo.pretrain --output runs/pretrain            # resumes where it stopped
    python -m demo.pretrain --output runs/pretrain --export demo/models/annotator

The training loop is in training.py. The result loads with AutoModelForCausalLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from tokenizers import processors
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import lexicon, pretraining, training

VOCABULARY = 2560
BUCKETS = (64, 88, 120, 176, 240, 304, 384, 480)  # padded lengths; a longer document is skipped
TOKENS_PER_STEP = 6_144
BOS = "<s>"


def train_tokenizer(seed: int = 0, documents: int = 12_000) -> PreTrainedTokenizerFast:
    """Train byte-level BPE; every number of up to two digits becomes one token."""
    rng = Random(seed)
    # Each of these words must be one token, with and without a leading space.
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

    tokenizer = training.byte_level_bpe(corpus(), VOCABULARY, [BOS])
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
    """Causal attention, q k v [B, H, T, D]; on a CPU faster than the fused kernel."""
    size = q.shape[-2]
    future = torch.full((size, size), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    weights = torch.softmax(q @ k.transpose(-1, -2) * scaling + future, dim=-1)
    return (weights @ v).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", attention)


class Batches:
    """Endless batches of a bucket each: ids [B, T] and loss weights [B, T], 0 at padding."""

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
                tokens = next(encoded).ids
                ids += tokens
                weights += [weight] * len(tokens)
            yield ids, weights


def collate(examples: list[tuple[list[int], list[float]]], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to `size` on the right with id 0 and weight 0."""
    ids = torch.tensor([row + [0] * (size - len(row)) for row, _ in examples])
    weights = torch.tensor([row + [0.0] * (size - len(row)) for _, row in examples])
    return ids, weights


def loss_of(
    model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted mean loss, and the mean loss of the heaviest tokens, in nats."""
    ids, weights = batch[0].to(model.device), batch[1].to(model.device)[:, 1:]
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    weighted = weights > 0
    logits = functional.linear(states[weighted], model.lm_head.weight)
    losses = functional.cross_entropy(logits.float(), ids[:, 1:][weighted], reduction="none")
    weight = weights[weighted]
    heavy = losses.detach()[weight >= 2.0]
    return (losses * weight).sum() / weight.sum(), {
        "heavy": heavy.mean().item() if len(heavy) else float("nan"),
        "tokens": ids.numel(),
    }


def main() -> None:
    """Command line."""
    args = training.command_line(__doc__, "runs/pretrain", 4_000).parse_args()
    tokenizer = training.tokenizer_of(args.output, train_tokenizer)
    torch.manual_seed(0)
    config = architecture()
    config._attn_implementation = "plain"
    trainer = training.Trainer(LlamaForCausalLM(config), args.steps, args.device)
    training.run(trainer, tokenizer, args, lambda seed: Batches(tokenizer, seed), loss_of)


if __name__ == "__main__":
    main()
