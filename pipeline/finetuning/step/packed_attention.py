"""Rows of several examples in a model: no attention from one example to another.

In: the number of the example of each token of a row. Out: the mask and the positions with which a model of
transformers computes each example as if it were alone. transformers by itself isolates such rows under some
conditions only, and leaks silently otherwise; a 4D mask says it outright. A model that does not honour the
mask and the positions is refused: it is compared with itself on rows of one example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pipeline.finetuning.data.batches import IGNORED, MicroBatch
from pipeline.finetuning.errors import PackingError
from tools_service.base.errors import brief

Segments = NDArray[np.int64]

_LENGTHS = (4, 5, 3)  # tokens of the examples that the check packs
_EXACT = 1e-4  # nats: the largest difference that is only rounding in float32 on a CPU
# The same for other types and devices: this share of the difference that attention across examples makes.
_ROUGH_SHARE, _TF32_SHARE = 0.25, 0.01
# What transformers raises for arguments that an architecture does not take.
_UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError)
_REMEDY = "set packing to false, or use another model (Llama, GPT-2, GPT-J, GPT-NeoX, OPT, Qwen)"


def packed_inputs(segments: Segments, model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """`attention_mask` [R, 1, T, T], added to scores, and `position_ids` [R, T], from 0 in each example."""
    dtype = model.get_input_embeddings().weight.dtype
    numbers = torch.from_numpy(segments).to(device)  # [R, T]
    places = torch.arange(numbers.shape[1], device=device)
    same_example = numbers[:, :, None] == numbers[:, None, :]  # [R, T, T]
    visible = same_example & (places[:, None] >= places)
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    # The tokens of an example are neighbours, so its first place is the lowest that is the same.
    first = same_example.byte().argmax(dim=2)
    return {"attention_mask": mask[:, None], "position_ids": places - first}


def require_isolation(nll: Callable[[MicroBatch], torch.Tensor], engine: Any, device: torch.device) -> None:
    """Raise PackingError on all workers unless packed examples have the losses of single ones.

    All workers must call this. `nll` gives the loss of each row, in nats.
    """
    name = type(engine.module).__name__
    vocabulary = engine.module.config.get_text_config(decoder=True).vocab_size
    ids = (np.arange(1, sum(_LENGTHS) + 1) * 7919 % vocabulary).astype(np.int64)
    parts = np.split(ids, np.cumsum(_LENGTHS)[:-1])
    packed, alone = _packed(parts), _alone(parts)
    leaking = MicroBatch(packed.ids, packed.labels, packed.text_ids)
    engine.eval()
    with torch.no_grad():
        single, joined = nll(alone).double(), nll(leaking).double()
        try:
            together = nll(packed).double()
        except _UNSUPPORTED as error:
            if isinstance(error, torch.OutOfMemoryError | dist.DistError):
                raise  # says nothing of the model
            raise PackingError(
                f"packing: {name} does not take a 4D mask and position ids ({brief(error)}); {_REMEDY}"
            ) from error
    worst, effect = (float(_maximum(losses - single, device)) for losses in (together, joined))
    if not worst <= _tolerance(engine.module.get_input_embeddings().weight.dtype, device, effect):
        raise PackingError(
            f"packing: {name} lets the examples of a row see one another: their losses are {worst:.2g} nats "
            f"off those of single examples. It does not honour a 4D mask or position ids; {_REMEDY}"
        )


def _packed(parts: list[Segments]) -> MicroBatch:
    """All parts in one row, as often as there are parts: each row has the labels of one of them."""
    ids = np.concatenate(parts)
    segments = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    next_ids = np.where(np.append(segments[1:] == segments[:-1], False), np.append(ids[1:], 0), IGNORED)
    labels = np.stack([np.where(segments == part, next_ids, IGNORED) for part in range(len(parts))])
    rows = np.tile(ids, (len(parts), 1)), np.tile(segments, (len(parts), 1))
    return MicroBatch(rows[0], labels, ((),) * len(parts), rows[1])


def _alone(parts: list[Segments]) -> MicroBatch:
    width = max(map(len, parts))
    ids = np.stack([np.pad(part, (0, width - len(part))) for part in parts])
    labels = [np.pad(part[1:], (0, width - len(part) + 1), constant_values=IGNORED) for part in parts]
    return MicroBatch(ids, np.stack(labels), ((),) * len(parts))


def _maximum(differences: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The largest absolute difference on any worker; infinite if one is not a number."""
    largest = differences.abs().nan_to_num(nan=float("inf")).max().to(device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def _tolerance(dtype: torch.dtype, device: torch.device, effect: float) -> float:
    share = _ROUGH_SHARE if dtype != torch.float32 else 0.0 if device.type == "cpu" else _TF32_SHARE
    return max(_EXACT, share * effect)
