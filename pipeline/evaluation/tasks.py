"""The work of an evaluation in tasks, each for one process with a model.

In: chunks of questions, held-out files, running texts. Out: predictions, perplexities. A chunk is decoded
together, whatever is done already: on a GPU the last bits of a logit depend on what is beside it in a batch.
This module knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.base.config import CorpusConfig, ModelConfig
from pipeline.benchmarks.wikitext import RunningText
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import perplexity, running_text_perplexity
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import PerplexityResult, RunningTextResult
from pipeline.evaluation.scoring import is_right
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from tools_service.tools.client import ToolClient

_HELD_OUT_TOKENS = 1_024  # the length of a training example (Appendix B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Questions of a benchmark, decoded together. `indices` are their places in the benchmark."""

    benchmark: str
    indices: tuple[int, ...]
    questions: tuple[Question, ...]
    params: DecodingParams
    date: str | None  # of questions without one
    batch_size: int

    def run(self, generator: Generator) -> list[Prediction]:
        """One prediction per question, in order."""
        prompts = [question.prompt for question in self.questions]
        dates = [question.date or self.date for question in self.questions]
        generations = generator.generate(prompts, self.params, dates, self.batch_size)
        return [
            Prediction(
                self.benchmark,
                question,
                generation,
                is_right(question.scoring, generation.text, question.answers),
            )
            for question, generation in zip(self.questions, generations, strict=True)
        ]

    def alone(self) -> Iterator[Chunk]:
        """Each question as a chunk of its own."""
        for index, question in zip(self.indices, self.questions, strict=True):
            yield Chunk(
                benchmark=self.benchmark,
                indices=(index,),
                questions=(question,),
                params=self.params,
                date=self.date,
                batch_size=1,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutTask:
    """Perplexity on held-out files."""

    files: tuple[CorpusFile, ...]
    corpus: CorpusConfig
    disabled: bool

    def run(self, generator: Generator) -> tuple[float, PerplexityResult]:
        """The perplexity, and what was counted. Raises PerplexityError."""
        model = generator.model
        max_tokens = min(_HELD_OUT_TOKENS, model.max_positions - len(model.call_tokens.bos))
        corpus = self.corpus.model_copy(update={"max_tokens": max_tokens})
        texts = list(read_corpus(list(self.files), corpus, lambda text: len(model.encode([text])[0].ids)))
        usable = [text.text for text in texts if text.skipped is None]
        value, counts = perplexity(model, usable, disabled=self.disabled)
        return value, counts.model_copy(update={"skipped": len(texts) - len(usable)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTextTask:
    """Perplexity on one running text."""

    name: str
    text: RunningText
    window: int  # tokens
    stride: int  # tokens
    disabled: bool

    def run(self, generator: Generator) -> RunningTextResult:
        """The perplexities by word and by token. Raises PerplexityError."""
        return running_text_perplexity(
            generator.model, self.text, self.window, self.stride, disabled=self.disabled
        )


Task = Chunk | HeldOutTask | RunningTextTask
TaskResult = list[Prediction] | tuple[float, PerplexityResult] | RunningTextResult


class Worker:
    """Runs tasks in this process, with one model at a time."""

    def __init__(self, loaded: tuple[ModelConfig, LanguageModel] | None = None) -> None:
        self._loaded = loaded

    def use(self, config: ModelConfig, tools: ToolClient) -> None:
        """Run the next tasks with this model, which stays if it is loaded, and these tools."""
        if self._loaded is None or self._loaded[0] != config:
            self._loaded = None  # frees the memory of the previous model first
            self._loaded = config, load_language_model(config)
        self._generator = Generator(self._loaded[1], tools)

    def run(self, task: Task) -> TaskResult:
        """The result of a task."""
        return task.run(self._generator)
