"""Scores files of insertions on Ray (paper section 2, "Filtering API Calls").

    read tasks (one a file) ─► parts of lines ─► scoring actors (one model each) ─► scores/*.jsonl

In: a ScoreConfig. Out, in `config.output`: scores/*.jsonl, every line of the input with its score, in
order by name; and manifest.json with what was asked and counts. The same command resumes a killed run:
parts that have their file are not scored again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from tqdm import tqdm

from pipeline.base.config import CorpusConfig, ScoreConfig
from pipeline.corpus.files import CorpusError, CorpusFile, list_files
from pipeline.engine.loading import require_model
from pipeline.runtime.connection import actor_processes, max_readers, ray_connection
from pipeline.scoring.manifest import (
    ScoreError,
    ScoreManifest,
    ScoreRefusedError,
    begin,
    completed,
    score_card,
)
from pipeline.scoring.scoring_actor import SCORE_FILES, PartSource, ScoreParts
from pipeline.storage.card import write_card
from pipeline.storage.kinds import SCORES
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.logs import logged
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import atomic_write, writing
from tools_service.base.ownership import require_own
from tools_service.runtime.resources import READER_CPUS, ProcessRequest, ResourceRequest

logger = logging.getLogger(__name__)

_OTHER_CPUS = 2  # for reading, besides the actors


def score(config: ScoreConfig) -> ScoreManifest:
    """Score every line of the files into `config.output`: a new run, or the rest of an unfinished one.

    Raises ConfigurationError before anything runs (no file, an output of something else or in use, a
    model that cannot be used), and ScoreError if the run stops.
    """
    files = _files(config)
    require_model(config.model)
    require_own(config.output, SCORES)  # before the lock file, which would be written into it
    with exclusive_lock(config.output, SCORES), logged(config.output):
        manifest = begin(config, files)
        folder = config.output / SCORE_FILES
        with writing(folder):
            folder.mkdir(exist_ok=True)
        done = frozenset(path.name for path in folder.glob("*.jsonl"))
        if manifest.state == "finished" and len(done) == manifest.parts:
            logger.info("%s: finished before, nothing to do", config.output)
            return manifest
        manifest = manifest.model_copy(update={"state": "unfinished", "finished": None})
        atomic_write(config.output / MANIFEST, manifest.written())
        if done:
            logger.info("%s: resuming after %d parts", config.output, len(done))
        _run(config, files, done)
        manifest = completed(manifest, folder, config.field)
        atomic_write(config.output / MANIFEST, manifest.written())
        write_card(config.output, score_card(manifest))
    return manifest


def _files(config: ScoreConfig) -> list[CorpusFile]:
    if not config.files:
        raise ScoreRefusedError("no file to score: name files of JSON lines (docs/scoring.md)")
    try:
        files = list_files(CorpusConfig(paths=config.files))
    except CorpusError as error:
        raise ScoreRefusedError(str(error).replace("corpus.paths", "files")) from error
    for file in files:
        if file.format != "jsonl":
            raise ScoreRefusedError(f"{file.label}: not a file of JSON lines (.jsonl, .jsonl.gz, .jsonl.zst)")
    return sorted(files, key=lambda file: file.name)


def _run(config: ScoreConfig, files: Sequence[CorpusFile], done: frozenset[str]) -> None:
    """Score the parts that are not `done`. Raises ScoreError."""
    config = config.model_copy(
        update={"output": config.output.resolve(), "model": config.model.with_absolute_path()}
    )
    request = resource_request(config)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    with ray_connection(request, config.ray.address), DataContext.current(context):
        readers = TaskPoolStrategy(size=max_readers(request, config.ray.most_actors, len(files)))
        source = PartSource(files, ray.put(done))
        parts = ray.data.read_datasource(source, num_cpus=READER_CPUS, compute=readers)
        scored = parts.map_batches(
            ScoreParts,
            fn_constructor_args=(config,),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=config.ray.cpus_per_actor,
            num_gpus=config.ray.gpus_per_actor,
            compute=ActorPoolStrategy(
                min_size=config.ray.actors,
                max_size=config.ray.most_actors,
                initial_size=config.ray.initial_actors,
            ),
        )
        try:
            with tqdm(desc="score", unit=" lines") as bar:
                for batch in scored.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                    bar.update(sum(batch["lines"].to_pylist()))
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ToolformerError):
                raise
            message = str(error.cause).partition("\nFailed to apply UDF")[0]
            kind = ScoreRefusedError if isinstance(error.cause, ConfigurationError) else ScoreError
            raise kind(f"{message}. The same command resumes the run") from error


def resource_request(config: ScoreConfig) -> ResourceRequest:
    """The resources that the actors and reading need at the same time."""
    actors = actor_processes("scoring actor", config.ray)
    return ResourceRequest(
        processes=(actors, ProcessRequest(of="reading task", cpus=READER_CPUS)),
        other_cpus=_OTHER_CPUS,
        wait_s=config.ray.wait_s,
        wait_option="ray.wait_s",
    )
