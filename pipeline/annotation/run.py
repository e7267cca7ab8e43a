"""Steps 1-4 on Ray Data: a corpus of any size → annotated rows (paper section 2).

    TextSource ─► batches of texts ─► annotating actors (one model each) ─► rows/*.parquet
                                          └─ lists of calls ─► tools on Ray Serve

In: `AnnotateConfig`. Out, in `config.output`: rows/*.parquet (ANNOTATION_SCHEMA, one row per text)
and manifest.json. The same command resumes a killed run: it annotates the missing texts, and the
result has the rows of an undisturbed run (docs/decisions/0004). annotator_actor.py annotates a batch.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.annotation.annotator_actor import RETRY_HINT, AnnotateBatch, AnnotationError, ModelRefusedError
from pipeline.annotation.budget import BudgetExhaustedError, BudgetWatch, StopWhenDrained, drained_run
from pipeline.annotation.isolation import FailureBudget
from pipeline.annotation.progress import start_progress
from pipeline.annotation.progress_line import progress_line
from pipeline.annotation.source import TextSource, read_groups
from pipeline.annotation.stall_watch import watched_stalls
from pipeline.annotation.tool_start import watched_start
from pipeline.annotation.unselected import UnselectedRows, some_texts_are_unselected
from pipeline.base.config import AnnotateConfig, RayConfig
from pipeline.corpus.files import CorpusFile, files_of_slice, find_files
from pipeline.corpus.texts import require_readable
from pipeline.runtime.connection import actor_processes, are_free, max_readers, ray_connection
from pipeline.storage.card import annotation_card, write_card
from pipeline.storage.counts import COLUMNS, count_rows
from pipeline.storage.expected_texts import PROGRESS
from pipeline.storage.kinds import ANNOTATION
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.logs import logged
from pipeline.storage.manifest import AnnotationManifest, Session, begin, missing_rows
from pipeline.storage.row_files import ROWS, Ids, read_failed, read_rows, recover_rows, remove_failed
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.base.errors import ToolformerError
from tools_service.base.files import now, writing
from tools_service.runtime.resources import READER_CPUS, ProcessRequest, ResourceRequest
from tools_service.serving.processes import tool_processes
from tools_service.tools.registry import require_available

logger = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 2  # batches per actor: while one waits for tools, the other uses the model
_BLOCK_BYTES = 8 * 2**20  # limits how far reading is ahead of the annotators
_NO_PROGRESS_TIMEOUT_S = 4 * 3600  # a large model may take long to load
_RAY_ADVICE = "\nFailed to apply UDF"  # how the advice begins that Ray Data appends
_NAME_CHARACTERS = 40  # of the output folder, in Ray's dashboard and names of log files
_OTHER_CPUS = 3  # for reading and batching, besides annotators and tools


def annotate(config: AnnotateConfig, actor: Callable[..., Any] | None = None) -> AnnotationManifest:
    """Annotate the corpus into `config.output`: a new run, or the rest of an unfinished one.

    Benchmarks and tests pass an `actor` that replaces AnnotateBatch. Raises ConfigurationError before
    anything runs (no readable document, an output of another configuration or in use by another process,
    an unavailable tool or model), or if the engine cannot run the model, and AnnotationError if the run
    stops.
    """
    from pipeline.engine.loading import require_model

    require_available(config.method.tools, config.tools)
    listing = find_files(config.corpus)
    files = files_of_slice(listing.files, config.corpus)
    require_readable(files, config.corpus)
    require_model(config.model)
    whole_corpus = None if config.corpus.slice is None else listing.files
    with exclusive_lock(config.output, ANNOTATION), logged(config.output):
        manifest = begin(config.output, config, files, whole_corpus)
        manifest = manifest.model_copy(update={"left_out": listing.what_is_left_out()})
        if config.retry_failed and manifest.counts and manifest.counts.status.get("failed"):
            manifest = manifest.reopened()
        if manifest.state == "finished" and (problem := missing_rows(config.output, manifest)):
            logger.warning("%s: annotating what is missing", problem)
            manifest = manifest.reopened()
        if manifest.state == "finished":
            logger.info("%s: finished before, nothing to do", config.output)
            write_card(config.output, annotation_card(manifest))
            return manifest
        return _run(_with_absolute_paths(config), files, manifest, actor or AnnotateBatch)


def _run(
    config: AnnotateConfig,
    files: Sequence[CorpusFile],
    manifest: AnnotationManifest,
    actor: Callable[..., Any],
) -> AnnotationManifest:
    """Annotate what is missing, compare the rows with the texts, and finish the manifest."""
    from pipeline.engine.loading import model_shape

    rows = config.output / ROWS
    with writing(rows):
        rows.mkdir(exist_ok=True)
    session, clock = Session(started=now()), time.monotonic()
    done, failures = _recover(config, rows)
    manifest.with_session(session).write(config.output)

    def ended(**more: Any) -> AnnotationManifest:
        wall_s = round(time.monotonic() - clock, 1)
        return manifest.with_session(Session(started=session.started, finished=now(), wall_s=wall_s, **more))

    watch = BudgetWatch(config, clock)
    try:
        texts = _run_graph(config, files, done, failures, actor, watch)
    except BudgetExhaustedError:
        ended(gpu_hours=watch.gpu_hours, stopped=watch.exhausted).write(config.output)
        raise
    written = len(recover_rows(rows))
    if written != texts:
        raise AnnotationError(
            f"{config.output}: {texts} texts were read, but there are {written} rows. If there are fewer "
            "rows, two texts have one id, by a rare chance (decisions/0007), or files were removed; if there "
            "are more, the corpus has changed"
        )
    counts = count_rows(read_rows(config.output, COLUMNS), config.method)
    manifest = ended(gpu_hours=watch.gpu_hours).completed(counts, model_shape(config.model.path))
    manifest.write(config.output)
    with writing(config.output):
        (config.output / PROGRESS).unlink(missing_ok=True)
    write_card(config.output, annotation_card(manifest))
    return manifest


def _recover(config: AnnotateConfig, rows: Path) -> tuple[Ids, FailureBudget]:
    """The ids of finished texts, and the failures. AnnotationError if too many failed."""
    done = recover_rows(rows)
    if config.retry_failed and (removed := remove_failed(rows)):
        logger.info("%s: trying %d failed texts again", config.output, removed)
        done = recover_rows(rows)
    failures = FailureBudget(config.max_failed_share, read_failed(config.output))
    if verdict := failures.verdict(len(done)):
        raise AnnotationError(f"{config.output}: {verdict}. {RETRY_HINT}")
    if len(done):
        logger.info("%s: resuming after %d texts", config.output, len(done))
    return done, failures


def _with_absolute_paths(config: AnnotateConfig) -> AnnotateConfig:
    """Workers have another working directory."""
    model = config.model.with_absolute_path()
    prompts = config.method.prompts and config.method.prompts.resolve()
    method = config.method.model_copy(update={"prompts": prompts})
    return config.model_copy(update={"model": model, "method": method, "output": config.output.resolve()})


def _run_graph(
    config: AnnotateConfig,
    files: Sequence[CorpusFile],
    done: Ids,
    failures: FailureBudget,
    actor: Callable[..., Any],
    watch: BudgetWatch,
) -> int:
    """Annotate the texts that are not `done`; return the number of all texts in the corpus.

    Raises this project's exceptions from workers as AnnotationError, and Ray's unchanged;
    BudgetExhaustedError when `watch` has stopped the run.
    """
    from tools_service.serving.deployment import starting_tools, wait_until_started

    _silence_ray()
    count = TokenCounter(config.model.path)
    request = needs(config)
    with ExitStack() as stack:
        stack.enter_context(ray_connection(request, config.ray.address))
        # An elastic run asks for all that is free.
        is_room = config.ray.max_actors is None and are_free(request, config.ray.address)
        tools = stack.enter_context(starting_tools(config.tools, config.method.tools, count))
        applications = tools.applications.values()
        groups = read_groups(files, config.corpus)
        progress = start_progress(len(groups), len(done), failures, str(config.output))
        stalls = stack.enter_context(watched_stalls(config, request, tools.applications, progress))
        if not is_room:  # else the actors could take what the tools need
            wait_until_started(applications, watch.require_hours)
        stack.enter_context(DataContext.current(_data_context()))
        drained = stack.enter_context(drained_run())
        unselected = None
        if some_texts_are_unselected(config.method):
            unselected = UnselectedRows(config.method, config.output / ROWS, progress)
        source = TextSource(
            groups, config.corpus, count, ray.put(done), progress, config.method.tools, unselected
        )
        readers = TaskPoolStrategy(size=max_readers(request, config.ray.most_actors, len(groups)))
        texts = ray.data.read_datasource(source, num_cpus=READER_CPUS, compute=readers)
        annotated = _annotated(texts, readers, config.ray, actor, (config, tools, progress))
        watch.begin(progress, tools.applications, drained)
        shown = progress_line(progress, config.ray, config.output, watch.look)
        annotated.set_name(f"annotate-{config.output.name[:_NAME_CHARACTERS]}")
        try:
            with watched_start(applications, progress), shown:
                for _ in annotated.iter_batches(batch_size=None, prefetch_batches=0):
                    pass  # the actors have written the rows
            if ray.get(progress.progress.remote()).refused:  # also if that emptied the whole graph
                raise BudgetExhaustedError(watch.exhausted)
        except BudgetExhaustedError:
            rows = f"The rows in {config.output} stay; the same command goes on"
            raise BudgetExhaustedError(f"stopped: {watch.exhausted} is used up. {rows}") from None
        except ExecutionTimeoutError as error:
            why = f": {stalls.diagnosis.sentence}" if stalls.diagnosis else ""
            raise AnnotationError(
                f"nothing moved for {_NO_PROGRESS_TIMEOUT_S / 3600:g} hours{why}. The rows in "
                f"{config.output} stay; the same command resumes the run"
            ) from error
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ToolformerError):
                raise
            message = str(error.cause).partition(_RAY_ADVICE)[0]
            if isinstance(error.cause, ModelRefusedError):
                raise ModelRefusedError(message) from error
            raise AnnotationError(
                f"{message}. The rows in {config.output} stay; the same command resumes the run"
            ) from error
        _, total = ray.get(progress.done_and_total.remote())
        return int(total)


def _annotated(
    texts: Dataset,
    readers: TaskPoolStrategy,
    resources: RayConfig,
    actor: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Dataset:
    """The graph: texts in batches of `texts_per_batch` through a pool of actors."""
    # Strict and in order: batch boundaries must not depend on what is done already. A text is then
    # always computed together with the same texts, and its row is the same to the last bit.
    batches = texts.repartition(target_num_rows_per_block=resources.texts_per_batch, strict=True)
    # By default each task asks for a whole CPU, which no node may have left, and with less, ten of them would
    # share one: as many new processes, while the models load. repartition() has no arguments for it.
    operator: Any = batches._logical_plan.dag
    operator.ray_remote_args["num_cpus"] = READER_CPUS
    object.__setattr__(operator, "compute", readers)
    return batches.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=resources.texts_per_batch,
        batch_format="pyarrow",
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        compute=ActorPoolStrategy(
            min_size=resources.actors,
            max_size=resources.most_actors,
            initial_size=resources.initial_actors,
            max_tasks_in_flight_per_actor=2 * BATCHES_IN_FLIGHT,
            max_concurrent_calls_per_actor=BATCHES_IN_FLIGHT,
        ),
    )


def needs(config: AnnotateConfig) -> ResourceRequest:
    """The resources that annotators, tools, reading and batching need at the same time."""
    annotators = actor_processes("annotating actor", config.ray)
    readers = ProcessRequest(of="reading task", count=2, least=1, cpus=READER_CPUS)
    return ResourceRequest(
        processes=(annotators, *tool_processes(config.tools, config.method.tools, "tools"), readers),
        other_cpus=_OTHER_CPUS,
        wait_s=config.ray.wait_s,
        wait_option="ray.wait_s",
    )


def _data_context() -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # progress.py draws one bar instead
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.custom_execution_callback_classes = [StopWhenDrained]
    return context


def _silence_ray() -> None:
    """Keep Ray's reports in its log files: an exception carries what matters to the user."""
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")  # of a small corpus
    for name in ("ray.data", "ray.serve"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
