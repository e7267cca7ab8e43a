"""The files of an evaluation: evaluation.json and, beside it, the predictions (docs/evaluation.md).

evaluation.json has models.LABEL.benchmarks.NAME.{accuracy, n, calls, …} and
models.LABEL.perplexity. A new result of a label replaces its old one and leaves other labels
unchanged. NAME.LABEL.jsonl has one line per question. This module imports no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.questions import Question
from pipeline.storage.kinds import EVALUATION
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write, read_model, writing
from tools_service.base.locks import output_lock
from tools_service.base.ownership import require_own
from tools_service.base.settings import Frozen
from tools_service.contract.tool import TRANSIENT

if TYPE_CHECKING:
    from pipeline.inference.generation import Generation


_MAX_LINE = 64 * 2**20


class EvaluationError(ConfigurationError):
    """Nothing to evaluate, a label that cannot name a file, or an output that is no evaluation."""


class BenchmarkResult(Frozen):
    """One model on one benchmark."""

    accuracy: float  # share of the questions with a right answer
    n: int  # questions
    calls: int  # questions with at least one completed call
    calls_by_tool: dict[str, int]  # completed calls
    failed_calls: dict[str, int]  # failed calls by reason
    not_asked: dict[str, int] = Field(default_factory=dict)  # questions by reason; they count as wrong
    answers_left_out: int = 0  # published answers that the scoring can never meet
    without_answer: int = 0  # questions with no other answer; they count as wrong
    interval: tuple[float, float] | None = None  # 95 % of the accuracy (Wilson); None in old files
    call_rate: float | None = None  # share of the questions with a completed call
    accuracy_with_call: float | None = None  # of these questions; None if there is none
    accuracy_without_call: float | None = None  # of the others
    left_out: dict[str, int] = Field(default_factory=dict)  # in the files, but not in the benchmark
    fingerprint: str = ""  # of everything that decides the result


class PerplexityResult(Frozen):
    """`left_out` tokens complete <API>; the corpus rules exclude `skipped` passages."""

    texts: int
    tokens: int
    left_out: int
    skipped: int = 0


class RunningTextResult(Frozen):
    """A model on one running text, read in windows. Perplexities are None where calls are possible."""

    word_perplexity: float | None
    token_perplexity: float | None
    words: int
    lines: int
    articles: int
    tokens: int = 0  # predicted
    left_out: int = 0  # tokens that complete <API>
    windows: int = 0
    window: int = 0  # tokens
    stride: int = 0  # tokens
    fingerprint: str = ""  # of everything that decides the result

    @classmethod
    def without_perplexity(cls, words: int, lines: int, articles: int) -> RunningTextResult:
        """The result of a model that can call."""
        return cls(word_perplexity=None, token_perplexity=None, words=words, lines=lines, articles=articles)


class ModelResult(Frozen):
    """One model on all benchmarks and held-out texts."""

    model: str
    k: int
    disabled: bool
    tools_off: tuple[str, ...]
    benchmarks: dict[str, BenchmarkResult]
    running_texts: dict[str, RunningTextResult] = Field(default_factory=dict)
    perplexity: float | None = None
    held_out: PerplexityResult | None = None
    held_out_fingerprint: str = ""


class Evaluation(Frozen):
    """The content of evaluation.json."""

    models: dict[str, ModelResult]

    @staticmethod
    def read(path: Path) -> Evaluation:
        """The results in `path`, or none if the file does not exist. Raises EvaluationError."""
        try:
            return read_model(path, Evaluation)
        except (FileNotFoundError, NotADirectoryError):
            return Evaluation(models={})
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
        if generation.refused is not None:
            row["refused"] = str(generation.refused)
        return json.dumps(row, ensure_ascii=False)


def summarise(
    predictions: Sequence[Prediction], fingerprint: str = "", left_out: Mapping[str, int] | None = None
) -> BenchmarkResult:
    """The counts over the predictions of one benchmark."""
    right = sum(prediction.right for prediction in predictions)
    with_call = [prediction.right for prediction in predictions if prediction.generation.calls]
    without = [prediction.right for prediction in predictions if not prediction.generation.calls]
    generations = [prediction.generation for prediction in predictions]
    tools = Counter(call.tool for generation in generations for call in generation.calls)
    reasons = Counter(call.reason for generation in generations for call in generation.failed)
    refused = Counter(g.refused.reason for g in generations if g.refused is not None)
    published = [len(prediction.question.answers) for prediction in predictions]
    usable = [len(prediction.question.usable_answers) for prediction in predictions]
    return BenchmarkResult(
        accuracy=right / len(predictions),
        n=len(predictions),
        interval=wilson(right, len(predictions)),
        calls=len(with_call),
        call_rate=len(with_call) / len(predictions),
        accuracy_with_call=_share(with_call),
        accuracy_without_call=_share(without),
        calls_by_tool=dict(tools.most_common()),
        failed_calls=dict(reasons.most_common()),
        not_asked=dict(refused.most_common()),
        answers_left_out=sum(published) - sum(usable),
        without_answer=usable.count(0),
        left_out=dict(left_out or {}),
        fingerprint=fingerprint,
    )


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


class ResultStore:
    """The files of one label. They are written after each benchmark, so that a crash loses only one."""

    def __init__(self, output: Path, label: str) -> None:
        """Raises EvaluationError for files of another origin, OutputError if they cannot be written."""
        self.output = output
        self.predictions = output.with_name(f"{output.stem}.{label}.jsonl")
        self._label = label
        self._stored = Evaluation.read(output).models.get(label)
        with output_lock(output, wait=True), writing(self.predictions):  # the place can be written
            require_own(output, EVALUATION)
            self._lines = self._read_predictions()

    def benchmark(self, name: str, fingerprint: str) -> BenchmarkResult | None:
        """The result of a benchmark that was stored under the same fingerprint, with its predictions.

        None if tools were lost on the way: these calls may succeed now.
        """
        stored = self._stored and self._stored.benchmarks.get(name)
        if not stored or not fingerprint or stored.fingerprint != fingerprint:
            return None
        if TRANSIENT & stored.failed_calls.keys():
            return None
        return stored if len(self._lines.get(name, ())) == stored.n else None

    def running_text(self, name: str, fingerprint: str) -> RunningTextResult | None:
        """The result of a running text that was stored under the same fingerprint."""
        stored = self._stored and self._stored.running_texts.get(name)
        return stored if stored and fingerprint and stored.fingerprint == fingerprint else None

    def held_out(self, fingerprint: str) -> tuple[float | None, PerplexityResult | None] | None:
        """The perplexity that was stored under the same fingerprint."""
        if self._stored is None or not fingerprint or self._stored.held_out_fingerprint != fingerprint:
            return None
        return self._stored.perplexity, self._stored.held_out

    def save(self, result: ModelResult, name: str = "", predictions: Sequence[Prediction] = ()) -> Evaluation:
        """Write the result of the label, and the predictions of benchmark `name` if that is new."""
        if name:
            self._lines[name] = [prediction.to_json() for prediction in predictions]
        self._lines = {known: self._lines[known] for known in result.benchmarks}
        lines = "".join(line + "\n" for lines in self._lines.values() for line in lines)
        with output_lock(self.output, wait=True):  # another label may be added at the same time
            require_own(self.output, EVALUATION)
            evaluation = Evaluation(models={**Evaluation.read(self.output).models, self._label: result})
            atomic_write(self.predictions, lines)
            atomic_write(self.output, evaluation.model_dump_json(indent=1) + "\n")
        return evaluation

    def _read_predictions(self) -> dict[str, list[str]]:
        """The stored lines by benchmark."""
        lines: dict[str, list[str]] = {}
        try:
            content = self.predictions.read_text(encoding="utf-8")
            for line in filter(None, content.split("\n")):
                row = json.loads(line)
                if "prediction" not in row:
                    raise ValueError("no prediction")
                lines.setdefault(str(row["benchmark"]), []).append(line)
        except FileNotFoundError:
            pass
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise EvaluationError(
                f"{self.predictions}: would be replaced by the predictions of {self._label}, and evaluate "
                "did not write it; choose another output or label"
            ) from error
        return lines
