"""Steps 1-4 on Ray: corpus → annotators → Parquet (paper section 2), from a corpus of any size.

    TextSource ─► batches of texts ─► annotating actors (one model each) ─► rows/*.parquet
                                          └─ calls, in lists ─► tools on Ray Serve

In: `AnnotateConfig`. Out, in `config.output`: rows/*.parquet (ANNOTATION_SCHEMA, one row per text) and
manifest.json. A run that was killed goes on when it is started again: it reads what is missing and leaves the
rows that an undisturbed run would have left (docs/decisions/0004). What happens to one batch of texts is in
annotator.py; nothing is decided about calls here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.annotation.isolation import MAX_CRASHES, FailureBudget, ReadWriteLock
from pipeline.annotation.metrics import BatchMetrics
from pipeline.annotation.progress import shown, start_progress
from pipeline.annotation.source import Corpus, TextSource, from_block, read_groups
from pipeline.base.config import AnnotateConfig, ModelConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Text
from pipeline.corpus.files import CorpusFile, all_files, list_files
from pipeline.corpus.texts import require_readable
from pipeline.engine.loading import model_shape
from pipeline.runtime.connection import ResourceRequest, ray_connection
from pipeline.storage.counts import COLUMNS, count_rows
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.logs import log_into, logged
from pipeline.storage.manifest import AnnotationManifest, Session, begin
from pipeline.storage.row_files import (
    ROWS,
    Ids,
    read_failed,
    read_rows,
    recover_rows,
    remove_rows,
    write_rows,
)
from pipeline.syntax.tokenizer import TokenCounter, load_tokenizer
from tools_service.base.errors import ToolformerError
from tools_service.base.files import now, writing
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import require_available

logger = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 2
"""Per actor: while one waits for tools, the other has the model."""
# Reading stays this far ahead of the annotators at most.
_BLOCK_BYTES = 8 * 2**20
_NO_PROGRESS_TIMEOUT_S = 4 * 3600  # a model of many GB may take long to load
_RAYS_ADVICE = "\nFailed to apply UDF"  # Ray Data lengthens our messages by what to set in its DataContext
_STARTS = 3  # times that each annotator may die before the first of them has its model
_AGAIN = "When the cause is gone, go on with --retry-failed; if that many may fail, raise --max-failed-share"
_OTHER_CPUS = 3  # reading and cutting into batches, besides annotators and tools


class AnnotationError(ToolformerError):
    """The run stopped. What was written stays; the same command goes on."""


def annotate(config: AnnotateConfig, actor: Callable[..., Any] | None = None) -> AnnotationManifest:
    """Annotate the corpus into `config.output`, or go on with it, or find that it is done.

    `actor` is what measurements of the graph put in the place of AnnotateBatch.

    Raises ConfigurationError before anything runs (no readable document, an output of another recipe or in
    use by another process, no such tool or model), and AnnotationError when the run stops.
    """
    require_available(config.method.tools, config.tools)
    shards = list_files(config.corpus)
    require_readable(shards, config.corpus)
    load_tokenizer(config.model.path)
    whole = None if config.corpus.slice is None else all_files(config.corpus)
    with exclusive_lock(config.output), logged(config.output):
        manifest = begin(config.output, config, shards, whole)
        if config.retry_failed and manifest.counts and manifest.counts.status.get("failed"):
            manifest = manifest.reopened()
        if manifest.state == "finished":
            logger.info("%s: finished before, nothing to do", config.output)
            return manifest
        return _run(_absolute(config), shards, manifest, actor or AnnotateBatch)


def _run(
    config: AnnotateConfig,
    shards: Sequence[CorpusFile],
    manifest: AnnotationManifest,
    actor: Callable[..., Any],
) -> AnnotationManifest:
    rows = config.output / ROWS
    with writing(rows):
        rows.mkdir(exist_ok=True)
    session, clock = Session(started=now()), time.monotonic()
    manifest.with_session(session).write(config.output)
    done = recover_rows(rows)
    if config.retry_failed and (again := remove_rows(rows, [text for text, _ in read_failed(config.output)])):
        logger.info("%s: trying %d failed texts again", config.output, again)
        done = recover_rows(rows)
    failures = FailureBudget(config.max_failed_share, read_failed(config.output))
    if verdict := failures.verdict(len(done)):
        raise AnnotationError(f"{config.output}: {verdict}. {_AGAIN}")
    if len(done):
        logger.info("%s: going on after %d texts", config.output, len(done))
    texts = _run_graph(config, shards, done, failures, actor)
    written = len(recover_rows(rows))
    if written != texts:
        raise AnnotationError(
            f"{config.output}: {texts} texts were read, but there are {written} rows. If fewer, two texts "
            "have one id, by a rare chance (decisions/0007), or files were removed; if more, the corpus has "
            "changed"
        )
    counts = count_rows(read_rows(config.output, COLUMNS), config.method)
    session = Session(started=session.started, finished=now(), wall_s=round(time.monotonic() - clock, 1))
    manifest = manifest.with_session(session).completed(counts, model_shape(config.model.path))
    manifest.write(config.output)
    return manifest


def _absolute(config: AnnotateConfig) -> AnnotateConfig:
    """Workers have a working folder of their own."""
    local = Path(config.model.path)
    model = config.model.model_copy(update={"path": str(local.resolve())}) if local.is_dir() else config.model
    prompts = config.method.prompts and config.method.prompts.resolve()
    method = config.method.model_copy(update={"prompts": prompts})
    return config.model_copy(update={"model": model, "method": method, "output": config.output.resolve()})


def _run_graph(
    config: AnnotateConfig,
    shards: Sequence[CorpusFile],
    done: Ids,
    failures: FailureBudget,
    actor: Callable[..., Any],
) -> int:
    """Annotate the texts that are not `done`; how many texts the corpus has, those included."""
    from tools_service.serving.deployment import tools_on_ray

    _hush()
    count = TokenCounter(config.model.path)
    with (
        ray_connection(needs(config), config.ray.address),
        tools_on_ray(config.tools, config.method.tools, count) as tools,
        DataContext.current(_data_context()),
    ):
        groups = read_groups(shards, config.corpus)
        tally = start_progress(len(groups), len(done), failures, str(config.output))
        texts = ray.data.read_datasource(
            TextSource(groups, Corpus(config.corpus, count, ray.put(done), tally))
        )
        # Strict, and in order: batches are cut in the same places whatever was done before, so a text is
        # computed in the same company, and its row is the same to the last bit.
        batches = texts.repartition(target_num_rows_per_block=config.ray.texts_per_batch, strict=True)
        annotated = batches.map_batches(
            actor,
            fn_constructor_args=(config, tools, tally),
            batch_size=config.ray.texts_per_batch,
            batch_format="pyarrow",
            num_cpus=config.ray.cpus_per_actor,
            num_gpus=config.ray.gpus_per_actor,
            compute=ActorPoolStrategy(
                min_size=config.ray.actors,
                max_size=config.ray.actors,
                initial_size=config.ray.actors,
                max_tasks_in_flight_per_actor=2 * BATCHES_IN_FLIGHT,
                max_concurrent_calls_per_actor=BATCHES_IN_FLIGHT,
            ),
        )
        with shown(tally, "annotate"), _typed_errors(config.output):
            for _ in annotated.iter_batches(batch_size=None, prefetch_batches=0):
                pass  # the actors have written the rows
        return int(ray.get(tally.total.remote()))


class AnnotateBatch:
    """One annotating actor: a model of its own, and the tools that all share."""

    def __init__(self, config: AnnotateConfig, tools: ToolClient, tally: Any) -> None:
        import torch

        from pipeline.engine.loading import load_language_model
        from pipeline.method.annotator import Annotator

        # Beside other actors, a thread more than was reserved is one that somebody waits for.
        torch.set_num_threads(max(1, int(config.ray.cpus_per_actor)))
        log_into(config.output)
        self._tally, self._turns, self._rows = tally, ReadWriteLock(), config.output / ROWS
        starts = ray.get(tally.starting.remote())
        if starts >= _STARTS * config.ray.actors:  # Ray would go on starting them for ever
            self._refused: str | None = (
                f"annotators died {starts} times while they loaded the model: too little memory?"
            )
            return
        try:
            model = load_language_model(_placed(config))
            self._annotator = Annotator(model, tools, config.method)
            self._metrics = BatchMetrics(config, model.model)
        except ToolformerError as error:
            self._refused = str(error)  # raised here, Ray would make prose of it
        else:
            self._refused = None
        ray.get(tally.ready.remote())

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of TEXT_SCHEMA → a file of ANNOTATION_SCHEMA, row by row; returns only how many.

        Written here, rows are safe as soon as they are there. On the way to a task that writes them they
        would wait for all batches before theirs, which takes long where an actor has been lost.
        """
        if self._refused is not None:
            raise AnnotationError(self._refused)
        texts, began = from_block(batch), time.monotonic()
        try:
            annotations = await self._surviving(texts)
        except ToolformerError as error:
            logger.error("the run stops", exc_info=True)
            raise AnnotationError(str(error)) from error  # survives the way to the driver, whatever it was
        failed = [(one.text.text_id, one.reason) for one in annotations if one.status == "failed"]
        if verdict := await self._tally.annotated.remote(len(texts), failed):
            raise AnnotationError(f"{verdict}. {_AGAIN}")
        rows = pa.Table.from_pylist([one.to_row() for one in annotations], schema=ANNOTATION_SCHEMA)
        try:
            await asyncio.to_thread(write_rows, self._rows, rows)
        except OSError as error:
            self._refused = f"{self._rows}: cannot write: {error}"  # no further batch is computed in vain
            raise AnnotationError(self._refused) from error
        self._metrics.batch(annotations, time.monotonic() - began)
        return pa.table({"texts": [len(texts)]})

    async def _surviving(self, texts: Sequence[Text]) -> list[Annotation]:
        """One annotation per text; what annotators have died with is taken apart, each text alone."""
        found: list[Annotation] | None = None
        ids = [text.text_id for text in texts]
        async with self._turns.shared():
            if await self._tally.begin.remote(ids) < MAX_CRASHES:
                found = await self._annotator.aannotate(texts)
        if found is None:
            logger.warning("annotators died with texts %d to %d: now one by one", ids[0], ids[-1])
            async with self._turns.alone():
                found = [await self._alone(text) for text in texts]
        await self._tally.end.remote(ids)
        return found

    async def _alone(self, text: Text) -> Annotation:
        if await self._tally.begin.remote([text.text_id]) >= MAX_CRASHES:
            reason = f"process died: {MAX_CRASHES} times, while it was annotating this text and nothing else"
            logger.warning("text %d failed", text.text_id, extra={"text_id": text.text_id, "error": reason})
            return Annotation(text, "failed", reason)
        [found] = await self._annotator.aannotate([text])
        await self._tally.end.remote([text.text_id])
        return found


def _placed(config: AnnotateConfig) -> ModelConfig:
    """The model where the actor's resources are: on the CPU, on its GPU, or spread over its GPUs."""
    gpus = config.ray.gpus_per_actor
    where: dict[str, Any] = {"gpus": max(1, int(gpus))} if gpus else {"device": "cpu"}
    return config.model.model_copy(update=where)


def needs(config: AnnotateConfig) -> ResourceRequest:
    """What annotators, tools, reading and batches need at once."""
    actors, tools = config.ray.actors, [config.tools.of(tool).deployment for tool in config.method.tools]
    cpus = actors * config.ray.cpus_per_actor + sum(one.min_replicas * one.cpus for one in tools)
    return ResourceRequest(
        cpus=cpus + _OTHER_CPUS,
        gpus=actors * config.ray.gpus_per_actor + sum(one.min_replicas * one.gpus for one in tools),
        of=f"{actors} actors and the tools",
        remedy="lower ray.gpus_per_actor (0 runs on the CPU) or ray.actors, or name a cluster in ray.address",
    )


def _data_context() -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # progress.py draws one line instead
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    return context


def _hush() -> None:
    """Ray's own reports go to its log files only: what matters of them comes back as an exception."""
    for name in ("ray.data", "ray.serve"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def _typed_errors(output: Path) -> Iterator[None]:
    """Ours, raised on a worker, as it was raised there; Ray's stay as they are."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ToolformerError):
            raise
        message = str(error.cause).partition(_RAYS_ADVICE)[0]
        raise AnnotationError(
            f"{message}. What was written to {output} stays; the same command goes on"
        ) from error
