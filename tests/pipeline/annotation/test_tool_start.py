"""Actors wait for tools that start beside them, and a tool that cannot start stops the run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from bench.fixtures import small_run as annotating
from pipeline.annotation.annotator_actor import AnnotationError
from pipeline.annotation.isolation import FailureBudget
from pipeline.annotation.progress import ProgressActor
from pipeline.annotation.run import annotate
from pipeline.annotation.tool_start import _POLL_S, tools_problem, watched_start
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.serving import deployment
from tools_service.serving.deployment import ToolStartError

PAGES = 20


class LocalProgress:
    """The progress actor, in this process."""

    def __init__(self) -> None:
        self.actor = ProgressActor(1, 0, FailureBudget(1.0), "a test")
        self.tools_ended_start = SimpleNamespace(remote=self.actor.tools_ended_start)
        self.tools_problem = SimpleNamespace(remote=self._tools_problem)

    async def _tools_problem(self) -> str | None:
        return self.actor.tools_problem()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (None, ""),
        (ToolStartError("no such model"), "no such model"),
        (OSError("no connection"), "no connection"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_actors_learn_how_the_start_of_the_tools_ended(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, problem: str
) -> None:
    looks: list[Collection[str]] = []

    def have_started(applications: Collection[str]) -> bool:
        looks.append(applications)
        if len(looks) == 3 and error:
            raise error
        return len(looks) == 3

    async def wait() -> str:
        waiting = asyncio.create_task(tools_problem(progress))
        await asyncio.sleep(0)
        assert not waiting.done()
        with watched_start(["a-tool"], progress):
            ended_with = await waiting
            await asyncio.sleep(2 * _POLL_S)  # in which nobody asks again
        return ended_with

    progress = LocalProgress()
    monkeypatch.setattr(deployment, "have_started", have_started)
    assert asyncio.run(wait()) == problem
    assert looks == 3 * [["a-tool"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", 1, PAGES)
    return folder


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_nothing_is_annotated_before_the_tools_run(
    ray_cluster: None, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They seem to start for ten seconds, longer than the actor takes; then one cannot."""
    config = annotating.config(world, world / "out")
    rows_seen: list[int] = []

    def have_started(applications: Collection[str]) -> bool:
        assert applications
        # Texts that no tool is tried on get their rows where they are read.
        tables = [pq.read_table(file) for file in parquet_files(config.output / ROWS)]
        rows_seen.append(sum(bool(row["work"]) for table in tables for row in table.to_pylist()))
        if len(rows_seen) < 50:
            return False
        raise ToolStartError("a-tool: DEPLOY_FAILED: no memory")

    monkeypatch.setattr(deployment, "have_started", have_started)
    with pytest.raises(AnnotationError, match=r"a-tool: DEPLOY_FAILED: no memory\. The rows in .* stay"):
        annotate(config)
    assert rows_seen == 50 * [0]
    gc.collect()  # the failed run's actor ends with the last reference to it
    monkeypatch.undo()
    manifest = annotate(config)
    assert manifest.counts is not None
    assert manifest.counts.texts == PAGES + 1
