"""The Ray actor that annotates batches of texts and writes their rows.

In: blocks of TEXT_SCHEMA, and the handles of the tools and of the progress actor. Out: a row file of
ANNOTATION_SCHEMA for each block. The actor isolates texts that kill the process (isolation.py) and stops
the run when too many texts fail. What happens to a text is in method/annotator.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray

from pipeline.annotation.actor_reports import Reporter
from pipeline.annotation.isolation import MAX_CRASHES, ReadWriteLock
from pipeline.annotation.metrics import BatchMetrics
from pipeline.annotation.source import from_block
from pipeline.annotation.tool_start import tools_problem
from pipeline.base.config import AnnotateConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Text
from pipeline.storage.logs import log_into
from pipeline.storage.row_files import ROWS, write_rows
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)

RETRY_HINT = "Remove the cause and resume with --retry-failed, or raise --max-failed-share"
_MAX_STARTS = 3  # crashes tolerated per actor before the first one has loaded its model
_START = "load the model"  # the task that an actor reports before its batches
_POLL_S = 0.5


class AnnotationError(ToolformerError):
    """The run stopped. The rows written so far stay, and the same command resumes the run."""


class ModelRefusedError(AnnotationError, ConfigurationError):
    """The model cannot be used. Nothing was annotated."""


class AnnotateBatch:
    """An annotating actor: one model, and the tools that all actors share."""

    def __init__(self, config: AnnotateConfig, tools: ToolClient, progress: Any) -> None:
        import torch

        from pipeline.engine.loading import load_language_model
        from pipeline.method.annotator import Annotator

        # More threads than reserved CPUs would take CPU time from other actors.
        torch.set_num_threads(max(1, int(config.ray.cpus_per_actor)))
        log_into(config.output)
        self._progress, self._lock, self._rows = progress, ReadWriteLock(), config.output / ROWS
        self._refused: AnnotationError | None = None
        self._tools_run = False
        self._name, self._texts, self._batches, self._began = config.output.name, 0, 0, time.monotonic()
        self._reporter = Reporter(progress, config.ray.gpus_per_actor)
        self._node = ray.get_runtime_context().get_node_id()
        starts = ray.get(progress.begin.remote(_START, self._node))
        if starts >= _MAX_STARTS * config.ray.most_actors:  # Ray would restart the actors forever
            problem = f"annotators died {starts} times while they loaded the model: too little memory?"
            self._refused = AnnotationError(problem)
            return
        try:
            draws = max(config.method.of(tool).k * config.method.of(tool).m for tool in config.method.tools)
            model = load_language_model(config.model.placed(config.ray.gpus_per_actor), draws)
            self._annotator = Annotator(model, self._reporter.watching(tools), config.method)
            self._metrics = BatchMetrics(config, model.model, self._annotator.utilization)
        except ConfigurationError as error:
            self._refused = ModelRefusedError(str(error))  # raised later: raised here, it would lose its type
        except ToolformerError as error:
            self._refused = AnnotationError(str(error))
        ray.get(progress.end.remote(_START))
        self._reporter.ready()

    def __repr__(self) -> str:
        speed = self._texts / max(time.monotonic() - self._began, 1e-9)
        done = f"{self._texts} texts, {self._batches} batches, {speed:.3g} texts/s"
        return f"Annotator({self._name}, {done})"

    def __del__(self) -> None:
        """Ray Data deletes the object when its actor ends in an orderly way."""
        if hasattr(self, "_reporter"):
            logger.info("%r has ended", self)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Annotate a block of TEXT_SCHEMA, write its rows to a file, return the number of texts.

        The actor writes the rows itself, so they are safe at once. A separate write task would wait for all
        earlier batches, which takes long when an actor is lost. Raises AnnotationError to stop the run.
        """
        if self._refused is not None:
            raise self._refused
        if not self._tools_run:
            if problem := await tools_problem(self._progress):
                raise AnnotationError(problem)
            self._tools_run = True
        texts, started = from_block(batch), time.monotonic()
        ids = tuple(text.text_id for text in texts)
        if not await self._progress.begin_batch.remote(ids, self._reporter.process):
            while not await self._progress.is_drained.remote():
                await asyncio.sleep(_POLL_S)
            return pa.table({"texts": [0]})
        with self._reporter.batch(len(texts)) as done:
            return await self._annotate_batch(texts, ids, started, done)

    async def _annotate_batch(
        self, texts: Sequence[Text], ids: tuple[int, ...], started: float, done: Callable[[float], None]
    ) -> pa.Table:
        """Annotate a batch that began at `started` and write its rows; `done` is told its share."""
        try:
            annotations = await self._annotate_isolated(texts, ids, done)
        except ToolformerError as error:
            logger.error("the run stops", exc_info=True)
            # Only this type is certain to survive pickling on the way to the driver.
            raise AnnotationError(str(error)) from error
        failed = [(item.text.text_id, item.reason) for item in annotations if item.status == "failed"]
        if verdict := await self._progress.annotated.remote(len(texts), failed):
            raise AnnotationError(f"{verdict}. {RETRY_HINT}")
        rows = pa.Table.from_pylist([item.to_row() for item in annotations], schema=ANNOTATION_SCHEMA)
        try:
            await asyncio.to_thread(write_rows, self._rows, rows)
        except OSError as error:
            # Refuse further batches, so that none is computed in vain.
            self._refused = AnnotationError(f"{self._rows}: cannot write: {error}")
            raise self._refused from error
        self._progress.end_batch.remote(ids)
        self._texts, self._batches = self._texts + len(texts), self._batches + 1
        self._metrics.batch(annotations, time.monotonic() - started)
        return pa.table({"texts": [len(texts)]})

    async def _annotate_isolated(
        self, texts: Sequence[Text], ids: tuple[int, ...], done: Callable[[float], None]
    ) -> list[Annotation]:
        """One annotation per text; a batch that actors died with is annotated text by text."""
        annotations: list[Annotation] | None = None
        async with self._lock.shared():
            if await self._progress.begin.remote(ids, self._node) < MAX_CRASHES:
                annotations = await self._annotator.aannotate(texts, done)
        if annotations is None:
            logger.warning("annotators died with texts %d to %d: now one by one", ids[0], ids[-1])
            async with self._lock.exclusive():
                annotations = []
                for text in texts:
                    annotations.append(await self._annotate_alone(text))
                    done(len(annotations) / len(texts))
        await self._progress.end.remote(ids)
        return annotations

    async def _annotate_alone(self, text: Text) -> Annotation:
        """Annotate one text while this actor does nothing else. It failed if actors died with it."""
        if await self._progress.begin.remote((text.text_id,), self._node) >= MAX_CRASHES:
            reason = f"process died: {MAX_CRASHES} times, while it was annotating this text and nothing else"
            logger.warning("text %d failed", text.text_id, extra={"text_id": text.text_id, "error": reason})
            return Annotation(text, "failed", reason)
        [annotation] = await self._annotator.aannotate([text])
        await self._progress.end.remote((text.text_id,))
        return annotation
