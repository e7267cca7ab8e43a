"""Checkpoints of a training: what `restore` continues from, and the model that `from_pretrained` loads.

In: the training of this worker and a folder. Out: folder/state, DeepSpeed's shards of weights and
optimizer; folder/model, written by the first worker. The folder may be one for all workers, or each
worker's own. A run may resume on another number of workers: the shards are then converted to DeepSpeed's
universal checkpoint (docs/decisions/0046). All workers must call these functions together.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from pipeline.finetuning.adapters import has_adapters, save_adapter
from pipeline.finetuning.errors import CheckpointError, DivergedError
from pipeline.finetuning.step.training import Training
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import OutputError, apply_umask

logger = logging.getLogger(__name__)

STATE = "state"
"""Folder of the shards in a checkpoint."""
_UNIVERSAL = "universal"
_OPTIMIZER_SHARD = re.compile(r".*zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")
_SHOWN_NAMES = 8  # weights in an error message


def save(training: Training, folder: Path, steps: int) -> None:
    """Write state for `restore` and, as the first worker, folder/model. All workers must call this.

    Raises OutputError on a worker whose disk is full, DivergedError on all of them.
    """
    model = training.engine.module
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with naming_a_full_disk(folder, sum(weight.nbytes for weight in model.parameters())):
        training.engine.save_checkpoint(
            str(folder),
            tag=STATE,
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


def workers_of(names: Iterable[str]) -> int:
    """How many workers saved the shards with these names; 0 if any number may load them (stage 0)."""
    return sum(_OPTIMIZER_SHARD.fullmatch(name) is not None for name in names)


def restore(training: Training, folder: Path, saved_by: int = 0, *, converts: bool = True) -> int:
    """Load what `save` wrote; return the steps taken. ToolformerError if nothing is there.

    `saved_by` is the number of workers that `workers_of` gives. If it is not today's, one of the workers
    that see the folder `converts` the shards.
    """
    if not (folder / STATE).is_dir():
        raise CheckpointError(f"{folder}: no checkpoint here; start over with --force")
    if training.engine.zero_nvme_offload_optimizer():  # weights would be those before training
        raise ToolformerError(
            f"{folder}: a run with optimizer states on NVMe cannot be resumed: start over with --force, or "
            "with offload_optimizer on cpu"
        )
    strict = not has_adapters(training.engine.module)  # the weights of the base are not in it
    if saved_by in (0, training.config.workers):
        _, state = training.engine.load_checkpoint(str(folder), tag=STATE, load_module_strict=strict)
    else:
        state = _load_universal(training, folder, converts, strict)
        if training.rank == 0:
            logger.info("%s: saved by %d workers, loaded by %d", folder, saved_by, training.config.workers)
    dist.barrier()
    return int(state["steps"])


def _load_universal(training: Training, folder: Path, converts: bool, strict: bool) -> Any:
    """DeepSpeed's client state. Each worker reads its part of every weight."""
    if training.engine.zero_nvme_offload_optimizer():
        raise ConfigurationError(
            f"workers = {training.config.workers}: the optimizer's states are on NVMe, which DeepSpeed "
            "cannot divide among another number of workers; start with as many as before"
        )
    if converts:
        _convert(folder)
    dist.barrier()
    settings = training.engine._config  # what checkpoint.load_universal in the file sets
    settings.load_universal_checkpoint = True
    try:
        _, state = training.engine.load_checkpoint(str(folder), tag=_UNIVERSAL, load_module_strict=strict)
    finally:
        settings.load_universal_checkpoint = False
    dist.barrier()
    if converts:
        _remove_converted(folder)
    return state


def _convert(folder: Path) -> None:
    """Write folder/universal: a file for every weight and every moment of the optimizer."""
    from deepspeed.checkpoint.ds_to_universal import main

    _remove_converted(folder)  # a killed start may have left a part
    arguments = SimpleNamespace(
        input_folder=str(folder / STATE),
        output_folder=str(folder / _UNIVERSAL),
        num_extract_workers=1,  # in this process
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    needed = sum(path.stat().st_size for path in (folder / STATE).iterdir())
    with (
        naming_a_full_disk(folder, 2 * needed),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        main(arguments)


def _remove_converted(folder: Path) -> None:
    shutil.rmtree(folder / _UNIVERSAL, ignore_errors=True)
    with suppress(FileNotFoundError):
        (folder / f"latest_{_UNIVERSAL}").unlink()


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
