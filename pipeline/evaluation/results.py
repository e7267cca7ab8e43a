"""What evaluation leaves behind: evaluation.json and, beside it, predictions (docs/evaluation.md).

evaluation.json holds models.LABEL.benchmarks.NAME.{accuracy, n, calls, …} and models.LABEL.perplexity. A
label's result replaces the one it had; other labels stay. NAME.LABEL.jsonl holds one line per question.
Imports no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.evaluation.questions import Question
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write
from tools_service.base.settings import Frozen
from tools_service.tools.contract import ToolName

if TYPE_CHECKING:
    from pipeline.inference.generator import Generation


class EvaluationError(ConfigurationError):
    """Nothing to evaluate, a label that cannot name a file, or a result file that is not one."""


class BenchmarkResult(Frozen):
    """One model on one benchmark."""

    accuracy: float
    """Share of the questions answered right."""
    n: int
    """Questions."""
    calls: int
    """Questions for which a call got its result."""
    calls_by_tool: dict[ToolName, int]
    """Those calls."""
    failed_calls: dict[str, int]
    """Calls that were begun and came to nothing, by reason."""


class PerplexityResult(Frozen):
    """What `perplexity` was measured on. `skipped` passages could not be used, by the corpus's rules."""

    texts: int
    tokens: int
    left_out: int
    skipped: int


class ModelResult(Frozen):
    """One model on everything."""

    model: str
    k: int
    disabled: bool
    tools_off: tuple[ToolName, ...]
    benchmarks: dict[str, BenchmarkResult]
    perplexity: float | None = None
    held_out: PerplexityResult | None = None


class Evaluation(Frozen):
    """evaluation.json."""

    models: dict[str, ModelResult]

    @staticmethod
    def read(path: Path) -> Evaluation:
        """The results in `path`; none if there is no such file. EvaluationError if it is something else."""
        if not path.exists():
            return Evaluation(models={})
        try:
            return Evaluation.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise EvaluationError(
                f"{path}: not a result of evaluate, choose another output: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question answered."""

    benchmark: str
    question: Question
    generation: Generation
    right: bool

    def to_json(self) -> str:
        """A line of the predictions' file."""
        question, made = self.question, self.generation
        row = {
            "benchmark": self.benchmark,
            "id": question.id,
            "prompt": question.prompt,
            "prediction": made.text,
            "answers": question.answers,
            "right": self.right,
            "calls": [asdict(call) for call in made.calls],
            "failed": [asdict(call) for call in made.failed],
            "stop": made.stop,
        }
        return json.dumps(row, ensure_ascii=False)


def summarise(predictions: Sequence[Prediction]) -> BenchmarkResult:
    """The counts of one benchmark's predictions."""
    made = [prediction.generation for prediction in predictions]
    return BenchmarkResult(
        accuracy=sum(prediction.right for prediction in predictions) / len(predictions),
        n=len(predictions),
        calls=sum(bool(generation.calls) for generation in made),
        calls_by_tool=dict(
            Counter(call.tool for generation in made for call in generation.calls).most_common()
        ),
        failed_calls=dict(
            Counter(call.reason for generation in made for call in generation.failed).most_common()
        ),
    )


def predictions_path(output: Path, label: str) -> Path:
    """Where the predictions of a label go: beside the result."""
    return output.with_name(f"{output.stem}.{label}.jsonl")


def store(output: Path, label: str, result: ModelResult, predictions: Sequence[Prediction]) -> Evaluation:
    """Put one label's result into the file, the others untouched; its predictions beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
    atomic_write(predictions_path(output, label), lines)
    evaluation = Evaluation(models={**Evaluation.read(output).models, label: result})
    atomic_write(output, evaluation.model_dump_json(indent=1) + "\n")
    return evaluation
