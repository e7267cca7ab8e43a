"""The files of an evaluation: evaluation.json and, beside it, the predictions (docs/evaluation.md).

evaluation.json has models.LABEL.benchmarks.NAME.{accuracy, n, calls, …} and
models.LABEL.perplexity. A new result of a label replaces its old one and leaves other labels
unchanged. NAME.LABEL.jsonl has one line per question. This module imports no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.questions import Question
from pipeline.storage.kinds import EVALUATION
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write, read_model
from tools_service.base.locks import output_lock
from tools_service.base.ownership import require_own
from tools_service.base.settings import Frozen
from tools_service.tools.contract import ToolName

if TYPE_CHECKING:
    from pipeline.inference.generator import Generation


_MAX_LINE = 64 * 2**20


class EvaluationError(ConfigurationError):
    """Nothing to evaluate, a label that cannot name a file, or an output that is no evaluation."""


class BenchmarkResult(Frozen):
    """One model on one benchmark."""

    accuracy: float  # share of the questions with a right answer
    n: int  # questions
    calls: int  # questions with at least one completed call
    calls_by_tool: dict[ToolName, int]  # completed calls
    failed_calls: dict[str, int]  # failed calls by reason


class PerplexityResult(Frozen):
    """`left_out` tokens complete <API>; the corpus rules exclude `skipped` passages."""

    texts: int
    tokens: int
    left_out: int
    skipped: int = 0


class ModelResult(Frozen):
    """One model on all benchmarks and held-out texts."""

    model: str
    k: int
    disabled: bool
    tools_off: tuple[ToolName, ...]
    benchmarks: dict[str, BenchmarkResult]
    perplexity: float | None = None
    held_out: PerplexityResult | None = None


class Evaluation(Frozen):
    """The content of evaluation.json."""

    models: dict[str, ModelResult]

    @staticmethod
    def read(path: Path) -> Evaluation:
        """The results in `path`, or none if the file does not exist. Raises EvaluationError."""
        if not path.exists():
            return Evaluation(models={})
        try:
            return read_model(path, Evaluation)
        except (OSError, ValueError) as error:
            message = f"{path}: not a result of evaluate, choose another output: {brief(error)}"
            raise EvaluationError(message) from error


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question and the model's answer."""

    benchmark: str
    question: Question
    generation: Generation
    right: bool

    def to_json(self) -> str:
        """One line of the predictions file."""
        question, generation = self.question, self.generation
        row = {
            "benchmark": self.benchmark,
            "id": question.id,
            "prompt": question.prompt,
            "prediction": generation.text,
            "answers": question.answers,
            "right": self.right,
            "calls": [asdict(call) for call in generation.calls],
            "failed": [asdict(call) for call in generation.failed],
            "stop": generation.stop_reason,
        }
        return json.dumps(row, ensure_ascii=False)


def summarise(predictions: Sequence[Prediction]) -> BenchmarkResult:
    """The counts over the predictions of one benchmark."""
    generations = [prediction.generation for prediction in predictions]
    tools = Counter(call.tool for generation in generations for call in generation.calls)
    reasons = Counter(call.reason for generation in generations for call in generation.failed)
    return BenchmarkResult(
        accuracy=sum(prediction.right for prediction in predictions) / len(predictions),
        n=len(predictions),
        calls=sum(bool(generation.calls) for generation in generations),
        calls_by_tool=dict(tools.most_common()),
        failed_calls=dict(reasons.most_common()),
    )


def add_result(
    output: Path, label: str, result: ModelResult, predictions: Sequence[Prediction]
) -> Evaluation:
    """Writes a label's predictions, adds its result to `output`, returns the whole evaluation."""
    lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
    with output_lock(output, wait=True):  # another label's result may be added at the same time
        require_replaceable(output, label)
        evaluation = Evaluation(models={**Evaluation.read(output).models, label: result})
        atomic_write(_predictions_file(output, label), lines)
        atomic_write(output, evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


def require_replaceable(output: Path, label: str) -> None:
    """Raise EvaluationError, NotOwnError or OutputError unless a result of `label` can be added."""
    Evaluation.read(output)
    require_own(output, EVALUATION)
    file = _predictions_file(output, label)
    try:
        with file.open(encoding="utf-8") as predictions:
            line = predictions.readline(_MAX_LINE)
        own = not line or {"benchmark", "prediction"} <= json.loads(line).keys()
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, RecursionError):
        own = False
    if not own:
        raise EvaluationError(
            f"{file}: would be replaced by the predictions of {label}, and evaluate did not write it; choose "
            "another output or label"
        )


def _predictions_file(output: Path, label: str) -> Path:
    return output.with_name(f"{output.stem}.{label}.jsonl")
