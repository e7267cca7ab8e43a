"""The files of one label: its part of evaluation.json, its predictions, and those of unfinished benchmarks.

In: results and predictions. Out, beside evaluation.json: evaluation.LABEL.parquet with all predictions, and
evaluation.LABEL.parts/ with the chunks of benchmarks that are not finished. A chunk is stored when its last
question is answered, so a killed run loses only the chunks that were being decoded. Every file holds the
fingerprint of what decides its rows; rows of another fingerprint are not used.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.predictions import SCHEMA, Prediction, read_metadata, to_table, write_table
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import (
    Evaluation,
    EvaluationError,
    ModelResult,
    PerplexityResult,
    RunningTextResult,
)
from pipeline.storage.kinds import EVALUATION, PART_OF_PREDICTIONS
from tools_service.base.files import atomic_write, writing
from tools_service.base.locks import output_lock
from tools_service.base.ownership import require_own
from tools_service.contract.tool import TRANSIENT

logger = logging.getLogger(__name__)

ACTOR_DIED = "actor_died"
"""Reason of a question whose process died while it decoded nothing else."""
_ASK_AGAIN = frozenset({ACTOR_DIED, "out_of_memory"})
_FINGERPRINTS = "fingerprints"


def predictions_file(output: Path, label: str) -> Path:
    """The predictions of a label, beside evaluation.json."""
    return output.with_name(f"{output.stem}.{label}.parquet")


class ResultStore:
    """The files of one label. They are written after each chunk and each benchmark."""

    def __init__(self, output: Path, label: str) -> None:
        """Raises EvaluationError for files of another origin, OutputError if they cannot be written."""
        self.output = output
        self.predictions = predictions_file(output, label)
        self.parts = output.with_name(f"{output.stem}.{label}.parts")
        self._label = label
        self._stored = Evaluation.read(output).models.get(label)
        with output_lock(output, wait=True), writing(self.predictions):  # the place can be written
            require_own(output, EVALUATION)
            self._fingerprints, self._tables = self._read_predictions()
        earlier = output.with_name(f"{output.stem}.{label}.jsonl")
        if earlier.is_file() and not self.predictions.is_file():
            logger.info("%s is of an earlier version and stays; %s replaces it", earlier, self.predictions)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the label against other processes. Raises OutputInUseError."""
        with output_lock(self.predictions):
            yield

    def known(self, name: str, fingerprint: str, questions: Sequence[Question]) -> dict[int, Prediction]:
        """The stored predictions of a benchmark by index. Those that lost a tool or their actor are left
        out: they may succeed now."""
        if not fingerprint:
            return {}
        rows: list[tuple[int, dict[str, Any]]] = []
        if name in self._tables and self._fingerprints[name] == fingerprint:
            rows += enumerate(self._tables[name].to_pylist())
        for path in self._parts(fingerprint):
            try:
                rows += zip(read_metadata(path)["indices"], pq.read_table(path).to_pylist(), strict=True)
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                logger.warning("%s cannot be read (%s): its questions are asked again", path, error)
        return {
            index: Prediction.from_row(row, questions[index])
            for index, row in rows
            if index < len(questions) and not _ask_again(row)
        }

    def add_part(self, fingerprint: str, predictions: Mapping[int, Prediction]) -> None:
        """Store a chunk of a benchmark that is not finished."""
        if not fingerprint:
            return
        with writing(self.parts):
            self.parts.mkdir(exist_ok=True)
        path = self.parts / f"{fingerprint}-{min(predictions):08d}-{uuid.uuid4().hex}.parquet"
        write_table(path, to_table(list(predictions.values())), {"indices": list(predictions)})

    def benchmark(self, name: str, fingerprint: str, predictions: Sequence[Prediction]) -> None:
        """Keep the predictions of a finished benchmark for `save`."""
        self._tables[name], self._fingerprints[name] = to_table(predictions), fingerprint

    def running_text(self, name: str, fingerprint: str) -> RunningTextResult | None:
        """The result of a running text that was stored under the same fingerprint."""
        stored = self._stored and self._stored.running_texts.get(name)
        return stored if stored and fingerprint and stored.fingerprint == fingerprint else None

    def held_out(self, fingerprint: str) -> tuple[float | None, PerplexityResult | None] | None:
        """The perplexity that was stored under the same fingerprint."""
        if self._stored is None or not fingerprint or self._stored.held_out_fingerprint != fingerprint:
            return None
        return self._stored.perplexity, self._stored.held_out

    def save(self, result: ModelResult) -> Evaluation:
        """Write the result of the label and the predictions of its benchmarks."""
        names = [name for name in result.benchmarks if name in self._tables]
        rows = pa.concat_tables([SCHEMA.empty_table(), *(self._tables[name] for name in names)])
        fingerprints = {name: self._fingerprints[name] for name in names}
        with output_lock(self.output, wait=True):  # another label may be added at the same time
            require_own(self.output, EVALUATION)
            models = Evaluation.read(self.output).models
            evaluation = Evaluation(models={**models, self._label: self._with_paired_tests(result)})
            write_table(self.predictions, rows, {_FINGERPRINTS: fingerprints})
            atomic_write(self.output, evaluation.model_dump_json(indent=1) + "\n")
        return evaluation

    def _with_paired_tests(self, result: ModelResult) -> ModelResult:
        """The paired tests of stored benchmarks stay until the end of the command, which repeats them."""
        if self._stored is None:
            return result
        benchmarks = dict(result.benchmarks)
        for name, stored in self._stored.benchmarks.items():
            if name in benchmarks and stored.fingerprint == benchmarks[name].fingerprint != "":
                benchmarks[name] = benchmarks[name].model_copy(update={"paired": stored.paired})
        return result.model_copy(
            update={"benchmarks": benchmarks, "compared_with": self._stored.compared_with}
        )

    def remove_parts(self, fingerprint: str = "") -> None:
        """Remove the chunks of a benchmark that is stored, or without `fingerprint` of all."""
        with writing(self.parts):
            for path in self._parts(fingerprint):
                path.unlink(missing_ok=True)
        if not fingerprint and self.parts.is_dir():
            for path in self.parts.glob(".*.part"):
                if re.fullmatch(PART_OF_PREDICTIONS, path.name):
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # somebody else's file is in it
                self.parts.rmdir()

    def _parts(self, fingerprint: str) -> list[Path]:
        return [
            path
            for path in sorted(self.parts.glob(f"{fingerprint}*.parquet"))
            if re.fullmatch(PART_OF_PREDICTIONS, path.name)
        ]

    def _read_predictions(self) -> tuple[dict[str, str], dict[str, pa.Table]]:
        """The stored fingerprints and rows by benchmark."""
        if not self.predictions.exists():  # OSError for a name that cannot be one
            return {}, {}
        try:
            fingerprints = dict(read_metadata(self.predictions)[_FINGERPRINTS])
            rows = pq.read_table(self.predictions).replace_schema_metadata(None).cast(SCHEMA)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise EvaluationError(
                f"{self.predictions}: would be replaced by the predictions of {self._label}, and evaluate "
                "did not write it, or it is damaged; choose another output or label"
            ) from error
        benchmarks = rows["benchmark"].to_pylist()
        starts = {name: benchmarks.index(name) for name in fingerprints if name in benchmarks}
        return fingerprints, {
            name: rows.slice(start, benchmarks.count(name)) for name, start in starts.items()
        }


def _ask_again(row: Mapping[str, Any]) -> bool:
    lost_tools = any(call["reason"] in TRANSIENT for call in row["failed"])
    return lost_tools or row["refused"] in _ASK_AGAIN
