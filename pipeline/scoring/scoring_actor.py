"""The Ray side of scoring: the input files as a Ray Data source, and the actor that scores a part.

In: input files; parts of lines. Out: a file of scores for each part. Parts that have their file are not
read again. How an insertion is scored is in method/insertions.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.base.config import ScoreConfig
from pipeline.corpus.files import CorpusFile
from pipeline.engine.errors import ModelError
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.insertions import Insertion, ScoredInsertion, Window, score_insertions
from pipeline.scoring.insertion_lines import InputLine, output_line, parse_insertion, read_parts
from pipeline.scoring.manifest import ScoreError, ScoreRefusedError
from pipeline.storage.logs import log_into
from tools_service.base.errors import ToolformerError
from tools_service.base.files import atomic_write

logger = logging.getLogger(__name__)

SCORE_FILES = "scores"
_LINE = pa.struct([("number", pa.int64()), ("text", pa.large_string()), ("problem", pa.large_string())])
_PART = pa.schema([("name", pa.string()), ("lines", pa.list_(_LINE))])


class PartSource(Datasource):
    """The parts of the files that have no scores yet, one read task a file, one row a part."""

    def __init__(self, files: Sequence[CorpusFile], done: ray.ObjectRef[frozenset[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._files, self._done = files, done

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: file sizes are compressed, and nothing depends on it."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per file; `parallelism` is ignored."""
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(
                partial(_read, file, number, self._done),
                metadata,
                schema=_PART,
                per_task_row_limit=per_task_row_limit,
            )
            for number, file in enumerate(self._files)
        ]


def _read(file: CorpusFile, number: int, done: ray.ObjectRef[frozenset[str]]) -> Iterator[pa.Table]:
    done_names = ray.get(done)
    for part in read_parts(file, number):
        if part.name not in done_names:
            row = {"name": part.name, "lines": [asdict(line) for line in part.lines]}
            yield pa.Table.from_pylist([row], schema=_PART)


class ScoreParts:
    """A scoring actor: one model; each part becomes one file."""

    def __init__(self, config: ScoreConfig) -> None:
        import torch

        torch.set_num_threads(max(1, int(config.ray.cpus_per_actor)))
        log_into(config.output)
        self._config, self._lines = config, 0
        self._refused: ScoreError | None = None
        try:
            self._model = load_language_model(config.model.placed(config.ray.gpus_per_actor))
        except ToolformerError as error:
            self._refused = ScoreRefusedError(str(error))  # raised later: raised here, it would lose its type

    def __repr__(self) -> str:
        return f"ScoringActor({self._config.output.name}, {self._lines} lines)"

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the part in `batch` and write its file. Raises ScoreError if that is not possible."""
        if self._refused is not None:
            raise self._refused
        [row] = batch.to_pylist()
        lines = [InputLine(**line) for line in row["lines"]]
        output = "".join(line + "\n" for line in score_lines(self._model, lines, self._config))
        try:
            atomic_write(self._config.output / SCORE_FILES / row["name"], output)
        except ToolformerError as error:
            raise ScoreError(str(error)) from error
        self._lines += len(lines)
        return pa.table({"lines": [len(lines)]})


def score_lines(model: LanguageModel, lines: Sequence[InputLine], config: ScoreConfig) -> list[str]:
    """The lines of output for lines of input. A line that cannot be scored has its reason there."""
    parsed = [parse_insertion(line, config.field) for line in lines]
    window = Window(config.tokens, config.weights)
    insertions = [item for _, item in parsed if isinstance(item, Insertion)]
    scores = iter(_isolated(model, insertions, config, window))
    return [
        output_line(
            fields, config.field, next(scores) if isinstance(item, Insertion) else item, config.per_token
        )
        for fields, item in parsed
    ]


def _isolated(
    model: LanguageModel, insertions: Sequence[Insertion], config: ScoreConfig, window: Window
) -> list[ScoredInsertion]:
    """Score; a list that fails is halved until one insertion stands alone with its error."""
    if not insertions:
        return []
    try:
        return score_insertions(model, insertions, place=config.place, window=window)
    except Exception as error:  # isolation: the failure becomes a reason
        if len(insertions) == 1:
            logger.warning("an insertion failed", exc_info=True)
            reason = "out_of_memory" if isinstance(error, ModelError) else type(error).__name__
            return [ScoredInsertion(reason=f"failed: {reason}")]
        logger.warning("a list of %d insertions failed; each half is tried alone", len(insertions))
    half = len(insertions) // 2
    first = _isolated(model, insertions[:half], config, window)
    return [*first, *_isolated(model, insertions[half:], config, window)]
