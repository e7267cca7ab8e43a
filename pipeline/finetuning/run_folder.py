"""The folder of a fine-tuning run: whose it is, how far it is, what it becomes.

    config.json, model.safetensors, tokenizer.json, …   the result
    metrics.jsonl                                       journal.py
    checkpoints/run.json, checkpoints/step-…            while the run is unfinished
    manifest.json                                       written last: the run is finished

A folder holds one run. Starting it again with another configuration or other data is refused, naming what
differs; so is a folder that holds anything else. Nothing is removed from a folder that is not a run's.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.base.config import FinetuneConfig, changed_fields
from pipeline.finetuning.metrics_log import Evaluation
from pipeline.storage.lock import LOCK
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write_json
from tools_service.base.settings import Frozen

logger = logging.getLogger(__name__)

# What may differ between two starts of one run: the result does not depend on it.
_OPERATIONAL: dict[str, Any] = {
    "output": True,
    "data": True,
    "cpus_per_worker": True,
    "max_failures": True,
    "gradient_checkpointing": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
}


class Run(Frozen):
    """checkpoints/run.json: what decides the result."""

    recipe: FinetuneConfig
    data: str
    """Digest of C*."""

    def differences(self, other: Run) -> list[str]:
        """What makes the other a different run, by field."""
        fields = changed_fields(self.recipe, other.recipe, ignore=_OPERATIONAL)
        return fields + ([] if self.data == other.data else ["data: other content"])


class FinetuneManifest(Run):
    """manifest.json of a finished run."""

    versions: dict[str, str]
    created: str
    texts: dict[str, int]
    """By use; truncated and tokens_per_epoch besides."""
    best: Evaluation
    """The evaluation that chose the result; losses in nats per token."""
    wall_s: float
    """Of the last start."""


R = TypeVar("R", bound=Run)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`path` and the files in it that have names."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _begun(self) -> Path:
        return self.checkpoints / "run.json"

    @property
    def _finished(self) -> Path:
        return self.path / MANIFEST

    def check(self) -> None:
        """Raises ConfigurationError if something other than a run is in the folder. Touches nothing."""
        there = {path.name for path in self.path.iterdir()} - {LOCK} if self.path.exists() else set()
        a_run = self._begun.exists() or (self._finished.exists() and self.metrics.exists())
        if not a_run and there - {self.checkpoints.name}:
            raise ConfigurationError(
                f"{self.path} is not empty, and not a run of finetune: choose another output"
            )

    def claim(self, run: Run, *, force: bool) -> bool:
        """After `check`: take the folder; whether the run has finished in it. `force` removes an earlier one.

        Raises ConfigurationError if another run is in the folder.
        """
        if force:
            self._clear()
        if self._finished.exists():
            _same(self.path, self.manifest(), run)
            return True
        if self._begun.exists():
            _same(self.path, _read(self._begun, Run), run)
            logger.info("%s: going on with the run begun there", self.path)
        else:
            self.checkpoints.mkdir(exist_ok=True)
            atomic_write_json(self._begun, run.model_dump(mode="json"))
        return False

    def publish(self, model: Path, manifest: FinetuneManifest) -> None:
        """Make the model in folder `model` the result, and the run a finished one."""
        shutil.copytree(model, self.path, dirs_exist_ok=True)
        atomic_write_json(self._finished, manifest.model_dump(mode="json"))
        shutil.rmtree(self.checkpoints)

    def manifest(self) -> FinetuneManifest:
        """Of a finished run."""
        return _read(self._finished, FinetuneManifest)

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def _read(path: Path, model: type[R]) -> R:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigurationError(
            f"{path} is not one that this version of finetune wrote; start over with --force: {error}"
        ) from error


def _same(folder: Path, before: Run, now: Run) -> None:
    if changed := before.differences(now):
        raise ConfigurationError(
            f"{folder} holds another run; start over with --force, or choose another output. "
            f"Different: {'; '.join(changed)}"
        )
