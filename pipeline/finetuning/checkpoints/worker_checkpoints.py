"""The checkpoints of a run, as a worker of Ray Train reads and writes them.

In: the configuration and the training of this worker. Out: checkpoints, reported to Ray Train; those
that need not be kept are removed. On a disk that all workers see, each writes its part in place. Into an
object store, each uploads its part from a folder of its own in TMPDIR. All workers must call each method
together.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import ray.train
import torch.distributed as dist
from ray.train.v2.api.report_config import CheckpointConsistencyMode, CheckpointUploadMode

from pipeline.base.finetune_config import FinetuneConfig, SelectBy
from pipeline.finetuning.checkpoints.checkpoint_storage import CheckpointStorage
from pipeline.finetuning.checkpoints.checkpointing import STATE, restore, save, workers_of
from pipeline.finetuning.evaluation.choice import best_of
from pipeline.finetuning.step.training import Training
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation

_SHARD = re.compile(r"(?:zero_pp_rank_|offloaded_tensors/rank)(\d+)")


class WorkerCheckpoints:
    """Saves and resumes; one for each worker."""

    def __init__(self, config: FinetuneConfig) -> None:
        context = ray.train.get_context()
        self._config, self._rank = config, context.get_world_rank()
        self._is_first_of_node = context.get_local_rank() == 0
        storage = context.get_storage()  # with the credentials and the endpoint of the driver
        self._storage = CheckpointStorage(
            config.storage or str(config.output),
            storage.storage_filesystem,
            storage.storage_fs_path,
            storage.experiment_dir_name,
        )
        self._local = Path(tempfile.gettempdir()) / f"toolformer-{self._storage.name}"
        self._node = f"node-{context.get_node_rank()}"

    def resume(self, training: Training) -> int:
        """Continue from the latest checkpoint, if there is one; returns the steps taken."""
        if self._is_first_of_node and not self._storage.is_shared_folder:
            for path in self._local.parent.iterdir():
                if path.name.startswith(f"{self._local.name}-"):  # a killed start left it
                    shutil.rmtree(path, ignore_errors=True)
        dist.barrier()
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        state = posixpath.join(checkpoint.path, STATE)
        names = self._storage.files(state)
        saved_by = workers_of(names)
        if self._storage.is_shared_folder:
            return restore(training, Path(checkpoint.path), saved_by, converts=self._rank == 0)
        folder = self._local.with_name(f"{self._local.name}-{self._node}")
        try:
            resharded = saved_by not in (0, self._config.workers)
            needed = [name for name in names if self._needs(name, resharded)]
            self._storage.download(state, folder / STATE, needed)
            dist.barrier()
            return restore(training, folder, saved_by, converts=self._is_first_of_node)
        finally:
            if self._is_first_of_node:  # `restore` ends with a barrier
                shutil.rmtree(folder, ignore_errors=True)

    def _needs(self, name: str, resharded: bool) -> bool:
        """Whether this worker downloads the file: shards of its own; what all need, once a node."""
        shard = _SHARD.search(name)
        if shard is None or resharded:
            return bool(self._is_first_of_node)
        return bool(int(shard[1]) == self._rank)

    def save(self, training: Training, evaluation: HeldOutEvaluation) -> None:
        """Write and report a checkpoint. Raises as `checkpointing.save` does."""
        name = f"step-{evaluation.step:06d}"
        if self._rank == 0:  # what an interrupted start left could have the shards of other workers
            self._storage.remove_checkpoint(name)
        dist.barrier()
        shared = self._storage.is_shared_folder
        with self._folder(name) as folder:
            save(training, folder, evaluation.step)
            ray.train.report(
                asdict(evaluation),
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
                if shared
                else CheckpointUploadMode.SYNC,
            )
        if self._rank == 0:
            self._remove_old()

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """Where this worker writes: the checkpoint itself, or a folder that exists only meanwhile."""
        if self._storage.is_shared_folder:
            yield Path(self._storage.folder) / name
            return
        folder = self._local.with_name(f"{self._local.name}-rank-{self._rank}")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_old(self) -> None:
        """Keep the latest `keep_checkpoints`, and the best."""
        reported = ray.train.get_all_reported_checkpoints(
            consistency_mode=CheckpointConsistencyMode.COMMITTED
        )
        evaluations = [HeldOutEvaluation(**each.metrics) for each in reported]
        for step in steps_to_remove(evaluations, self._config.keep_checkpoints, self._config.select_by):
            self._storage.remove_checkpoint(f"step-{step:06d}")


def steps_to_remove(
    evaluations: Sequence[HeldOutEvaluation], keep_checkpoints: int, select_by: SelectBy
) -> set[int]:
    """All but the latest `keep_checkpoints` and the best."""
    steps = sorted(evaluation.step for evaluation in evaluations)
    best = best_of(evaluations, select_by)
    return set(steps[:-keep_checkpoints]) - ({best.step} if best else set())
