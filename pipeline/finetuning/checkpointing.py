"""Checkpoints of a training: what `restore` continues from, and the model that `from_pretrained` loads.

In: the training of this worker and a folder. Out: folder/state, DeepSpeed's shards of weights and
optimizer; folder/model, written by the first worker. All workers must call these functions together.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from pipeline.finetuning.adapters import has_adapters, save_adapter
from pipeline.finetuning.errors import DivergedError
from pipeline.finetuning.training import Training
from tools_service.base.errors import ToolformerError
from tools_service.base.files import OutputError, apply_umask

_TAG = "state"
_SHOWN_NAMES = 8  # weights in an error message


def save(training: Training, folder: Path, steps: int) -> None:
    """Write state for `restore` and, as the first worker, folder/model. All workers must call this.

    Raises OutputError on a worker whose disk is full, DivergedError on all of them.
    """
    model = training.engine.module
    with naming_a_full_disk(folder, sum(weight.nbytes for weight in model.parameters())):
        training.engine.save_checkpoint(
            str(folder),
            tag=_TAG,
            client_state={"steps": steps},
            exclude_frozen_parameters=has_adapters(model),
        )
    weights, damaged = _whole_weights(training)
    if float(training.sum_over_workers(torch.tensor(float(len(damaged)), device=training.device))):
        raise DivergedError(
            f"step {steps}: the weights {', '.join(damaged[:_SHOWN_NAMES])} are empty or not finite; "
            "nothing is published. Lower learning_rate, and start over with --force"
        )
    if training.rank == 0:
        buffers = dict(model.named_buffers())
        if not has_adapters(model):
            weights |= {name: value for name, value in model.state_dict().items() if name in buffers}
        with naming_a_full_disk(folder, sum(value.nbytes for value in weights.values())):
            if has_adapters(model):
                save_adapter(model, weights, folder / "model")
            else:
                model.save_pretrained(folder / "model", state_dict=weights)
            training.tokenizer.save_pretrained(folder / "model")
            apply_umask(folder / "model")
    dist.barrier()


def _whole_weights(training: Training) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The parameters on the first worker, none on others, and the names of damaged ones on all.

    With adapters, only these.
    """
    import deepspeed

    model = training.engine.module
    weights, damaged = {}, []
    for name, parameter in model.named_parameters():
        if has_adapters(model) and not parameter.requires_grad:
            continue
        # Sharded weights are gathered one by one. A parameter with a ds_id is sharded.
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if not parameter.numel() or not parameter.isfinite().all():
                damaged.append(name)
            if training.rank == 0:
                weights[name] = parameter.detach().cpu().clone()
    return weights, damaged


def restore(training: Training, folder: Path) -> int:
    """Load what `save` wrote; return the steps taken. ToolformerError if nothing is there."""
    if not (folder / _TAG).is_dir():
        raise ToolformerError(f"{folder}: no checkpoint here; start over with --force")
    strict = not has_adapters(training.engine.module)  # the weights of the base are not in it
    _, state = training.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=strict)
    return int(state["steps"])


@contextmanager
def naming_a_full_disk(folder: Path, needed: int) -> Iterator[None]:
    """Raise OutputError if writing fails while fewer than `needed` bytes are free at `folder`.

    torch and safetensors report a full disk as a RuntimeError that does not say so.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(folder.parent).free >= needed:
            raise
        reason = os.strerror(errno.ENOSPC)
        raise OutputError(
            f"{folder}: cannot write: {reason}. Make room and give the command again, or name another output"
        ) from error
