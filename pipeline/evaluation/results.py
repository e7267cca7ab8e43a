"""The results of an evaluation: the content of evaluation.json (docs/evaluation.md).

evaluation.json has models.LABEL.benchmarks.NAME.{accuracy, n, calls, …} and models.LABEL.perplexity. store.py
writes it. This module imports no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.evaluation.intervals import wilson
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import read_model
from tools_service.base.settings import Frozen

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Prediction


class EvaluationError(ConfigurationError):
    """Nothing to evaluate, a label that cannot name a file, or an output that is no evaluation."""


class PairedTest(Frozen):
    """Two models on the same questions: McNemar's exact test, two-sided."""

    b: int  # questions that this model has right and the other wrong
    c: int  # the reverse
    p: float  # probability of such a difference, or a larger one, if both are right equally often


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
    paired: PairedTest | None = None  # against the model `compared_with`; None if its questions differ
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
    compared_with: str | None = None  # label of the model of the paired tests


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
