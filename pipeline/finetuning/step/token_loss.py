"""Negative log-probabilities of labelled tokens: no logits for other positions, bounded float32 memory.

In: a model's logits, or rows of a micro-batch. Out: the same numbers as `cross_entropy` over all
positions. Padding, masked tokens and the last token of each example have no label, so the output
embeddings skip them (`LabelledLogits`). With large vocabularies the float32 copies of the logits would
be most of a step's memory, so `token_nll` makes them for a part of the tokens at a time, in the forward
and in the backward pass. `row_groups` divides rows so that short ones are not padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.finetuning.data.batches import IGNORED

MAX_FLOAT32_LOGITS = 2**26
"""Logits that are converted to float32 at once: 256 MiB, and as much again for their gradient."""
_MIN_SAVED_TOKENS = 64
"""Padding that another forward pass must save, on a CPU. It costs about 20 tokens' time in the demo."""


class LabelledLogits:
    """Makes a model compute logits at labelled positions only."""

    def __init__(self, model: Any) -> None:
        self.index: Tensor | None = None
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._select)

    def _select(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Rows `index` of the hidden states [R, T, H] instead of all of them: [n, H]."""
        if self.index is None:
            return None
        hidden, *others = inputs
        return (hidden.flatten(0, -2)[self.index], *others)

    def nll(self, forward: Any, inputs: dict[str, Any], labels: NDArray[np.int64]) -> Tensor:
        """Negative log-probability of the labels in nats, float32 [R, T]; 0 where there is none.

        `forward` runs the model on `inputs`, whose rows belong to `labels` [R, T].
        """
        device = inputs["input_ids"].device
        # numpy finds the positions: on a GPU, torch would wait for the device.
        positions = np.flatnonzero(labels.reshape(-1) != IGNORED)
        index = torch.from_numpy(positions).to(device, non_blocking=True)
        targets = torch.from_numpy(labels.reshape(-1)[positions]).to(device, non_blocking=True)
        self.index = index
        try:
            logits = forward(**inputs, use_cache=False).logits
        finally:
            self.index = None
        if logits.dim() == 3:  # the model has no module for its output embeddings
            logits = logits.flatten(0, 1)[index]
        nll = torch.zeros(labels.size, device=device).index_copy(0, index, token_nll(logits, targets))
        return nll.view(labels.shape)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[targets] in nats: [n, V] and [n] to float32 [n]."""
    rows = max(1, MAX_FLOAT32_LOGITS // logits.shape[-1])
    if len(logits) <= rows:
        return F.cross_entropy(logits.float(), targets, reduction="none")
    nll: Tensor = _TokenNll.apply(logits, targets, rows)  # type: ignore[no-untyped-call]
    return nll


class _TokenNll(torch.autograd.Function):
    """`token_nll`, `rows` rows at a time: it keeps the logits, and nothing of their size in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.rows = rows
        parts = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
        return torch.cat([F.cross_entropy(part.float(), labels, reduction="none") for part, labels in parts])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        parts = (torch.split(tensor, ctx.rows) for tensor in (logits, targets, grad, gradient))
        for values, labels, of_nll, out in zip(*parts, strict=True):
            with torch.enable_grad():
                part = values.detach().requires_grad_()
                nll = F.cross_entropy(part.float(), labels, reduction="none")
            out.copy_(torch.autograd.grad(nll, part, of_nll)[0])
        return gradient, None, None


def row_groups(labels: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int]]:
    """Rows of labels [R, T] that share a forward pass on a CPU, and its width up to their last label.

    Rows of similar length are together, so that little is padded.
    """
    lengths = labels.shape[1] - (labels[:, ::-1] != IGNORED).argmax(axis=1)  # [R], up to the last label
    order = np.argsort(lengths, kind="stable")
    groups = [order[group] for group in _groups(lengths[order].tolist(), 0)]
    return [(group, int(lengths[group].max())) for group in groups]


def _groups(lengths: Sequence[int], start: int) -> list[slice]:
    """Slices of ascending lengths, the first of which begins at `start`; each split saves enough padding."""
    saved = [size * (lengths[-1] - lengths[size - 1]) for size in range(1, len(lengths))]
    if max(saved, default=0) < _MIN_SAVED_TOKENS:
        return [slice(start, start + len(lengths))]
    size = 1 + saved.index(max(saved))
    return _groups(lengths[:size], start) + _groups(lengths[size:], start + size)


def has_dropout(model: nn.Module) -> bool:
    """Whether a training step draws random numbers, which depend on the shapes of its forward passes."""
    layers = (module.p for module in model.modules() if isinstance(module, nn.Dropout))
    settings = getattr(model, "config", None)
    named = vars(settings).items() if settings is not None else ()
    return any(layers) or any(value for name, value in named if "drop" in name and isinstance(value, float))
