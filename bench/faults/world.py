"""What all rounds share: a model, prompts, a corpus, and a cluster that starts when it is first used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from bench.fixtures import small_run
from cluster.local import LocalCluster

ACTORS, TEXTS_PER_BATCH, FILES = 2, 8, 3
NODE = "cpus=4"
_TEXTS_TO_MERGE = 201
# A node that stands still is declared dead after about 15 s, and a driver whose cluster is gone ends after
# 10 s. Ray's defaults are about a minute each.
_PATIENCE = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
HEALTH_LIMIT_S = 20.0


class World:
    """A folder with a small run's inputs; `with` ends the cluster."""

    def __init__(self, folder: Path, texts: int) -> None:
        """`texts` is the size of the corpus to annotate, about."""
        self.folder = folder
        self.inputs = make_world(folder / "world", texts)
        self._numbers, self._stack = count(1), ExitStack()

    def __enter__(self) -> World:
        before = {name: os.environ.get(name) for name in _PATIENCE}
        self._stack.callback(_set_variables, before)
        _set_variables(_PATIENCE)  # of all processes that start from now on
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def new_folder(self, name: str = "round") -> Path:
        """An empty folder for a round. Its output is a folder in it, so that all leftovers are in it."""
        folder = self.folder / f"{name}{next(self._numbers)}"
        folder.mkdir()
        return folder

    @cached_property
    def cluster(self) -> LocalCluster:
        """Two nodes, and a head that does no work."""
        return self._stack.enter_context(LocalCluster([NODE] * ACTORS))

    @cached_property
    def annotated(self) -> Path:
        """A finished annotation to merge."""
        inputs = make_world(self.folder / "small_world", _TEXTS_TO_MERGE)
        small_run.finished(inputs, self.folder / "annotated")
        return self.folder / "annotated"

    def configuration(self, output: Path) -> Any:
        """The configuration of every run of annotate."""
        return configuration(self.inputs, output)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def configuration(inputs: Path, output: Path) -> Any:
    """The configuration of a run of annotate."""
    return small_run.config(inputs, output, actors=ACTORS, texts_per_batch=TEXTS_PER_BATCH)


def make_world(folder: Path, texts: int) -> Path:
    """Write a model, prompts, and a corpus of about `texts` texts."""
    small_run.save_model(folder / "model")
    small_run.write_prompts(folder / "prompts")
    small_run.write_corpus(folder / "pages", FILES, texts // FILES - 1)  # and one broken line in each file
    return folder
