"""Predictions: a question with the model's answer, and their Parquet files.

In: predictions. Out: rows of one Arrow schema. `datasets`, pandas and DuckDB read the files. Fingerprints
are in the metadata of a file. No model runs here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.questions import Question
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import Generation, PromptError
from pipeline.storage.parquet import write_parquet
from tools_service.base.files import PART, writing

_CALL = pa.struct(
    [("tool", pa.string()), ("input", pa.string()), ("result", pa.string()), ("position", pa.int64())]
)
_FAILED = pa.struct([("written", pa.string()), ("reason", pa.string()), ("position", pa.int64())])
SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("prediction", pa.string()),  # without calls
        ("annotated", pa.string()),  # with calls
        ("answers", pa.list_(pa.string())),
        ("right", pa.bool_()),
        ("calls", pa.list_(_CALL)),
        ("failed", pa.list_(_FAILED)),
        ("stop", pa.string()),
        ("refused", pa.string()),  # reason, null if the question was asked
        ("message", pa.string()),  # the reason in words
        ("tokens", pa.int64()),  # of the prediction
        ("prompt_tokens", pa.int64()),
        ("sampled_tokens", pa.int64()),
    ]
)
_METADATA = b"toolformer.evaluate"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question and the model's answer."""

    benchmark: str
    question: Question
    generation: Generation
    right: bool

    def to_row(self) -> dict[str, Any]:
        """A row of SCHEMA."""
        question, generation, refused = self.question, self.generation, self.generation.refused
        return {
            "benchmark": self.benchmark,
            "id": question.id,
            "prompt": question.prompt,
            "prediction": generation.text,
            "annotated": generation.annotated,
            "answers": list(question.answers),
            "right": self.right,
            "calls": [asdict(call) for call in generation.calls],
            "failed": [asdict(call) for call in generation.failed],
            "stop": generation.stop_reason,
            "refused": refused and refused.reason,
            "message": refused and str(refused),
            "tokens": generation.tokens,
            "prompt_tokens": generation.prompt_tokens,
            "sampled_tokens": generation.sampled_tokens,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], question: Question) -> Prediction:
        """The prediction of a row of SCHEMA, whose question is known."""
        refused = None if row["refused"] is None else PromptError(row["refused"], row["message"])
        generation = Generation(
            text=row["prediction"],
            calls=tuple(CompletedCall(**call) for call in row["calls"]),
            failed=tuple(FailedCall(**call) for call in row["failed"]),
            stop_reason=row["stop"],
            tokens=row["tokens"],
            refused=refused,
            prompt_tokens=row["prompt_tokens"],
            sampled_tokens=row["sampled_tokens"],
        )
        return cls(row["benchmark"], question, generation, row["right"])


def refused_prediction(benchmark: str, question: Question, reason: str, message: str) -> Prediction:
    """The prediction of a question that could not be asked: wrong."""
    generation = Generation("", (), (), "refused", 0, PromptError(reason, message))
    return Prediction(benchmark, question, generation, right=False)


def to_table(predictions: Sequence[Prediction]) -> pa.Table:
    """The rows of SCHEMA."""
    return pa.Table.from_pylist([prediction.to_row() for prediction in predictions], SCHEMA)


def write_table(path: Path, rows: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write a Parquet file: a reader sees the old file or the new. OutputError if it fails."""
    rows = rows.replace_schema_metadata({_METADATA: json.dumps(metadata, sort_keys=True)})
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    with writing(path):
        write_parquet(path, rows, part)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_table` was given. Raises OSError, ValueError; KeyError for a file of another origin."""
    content = json.loads((pq.read_schema(path).metadata or {})[_METADATA])
    if not isinstance(content, dict):
        raise ValueError("no metadata of evaluate")
    return content
