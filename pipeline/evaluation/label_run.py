"""The evaluation of one label: what is stored already, the tasks for the rest, and the result.

In: a configuration, benchmarks, running texts, a store. Out: tasks for an executor; a ModelResult. Each chunk
is stored when it is done, and each benchmark when its last chunk is.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from tqdm import tqdm

from pipeline.base.config import CorpusConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.benchmarks.wikitext import RunningText
from pipeline.corpus.files import list_files
from pipeline.evaluation.executors import Executor
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.questions import Benchmark
from pipeline.evaluation.results import (
    BenchmarkResult,
    ModelResult,
    PerplexityResult,
    RunningTextResult,
    summarise,
)
from pipeline.evaluation.store import ResultStore
from pipeline.evaluation.tasks import Chunk, HeldOutTask, RunningTextTask, Task, TaskResult
from pipeline.inference.generator import available_tools
from pipeline.inference.params import DecodingParams
from tools_service.base.adapters import model_inputs
from tools_service.base.fingerprint import fingerprint, input_states
from tools_service.base.staged_models import staged_source
from tools_service.base.version import __version__
from tools_service.tools.registry import files_read

logger = logging.getLogger(__name__)

_NO_CALLS_ONLY = "%s: no perplexity with calls on (paper section 4.3); it needs --generation.disabled"
_CHUNK = 64  # questions; at least two batches


class LabelRun:
    """One model on all benchmarks and texts."""

    def __init__(
        self,
        label: str,
        config: EvaluateConfig,
        benchmarks: Sequence[Benchmark],
        texts: Mapping[str, RunningText],
        store: ResultStore | None = None,
        *,
        own_tools: bool = True,
    ) -> None:
        """Without `own_tools` a caller has the tools: nothing is known of them, and no result is reused."""
        generation = config.generation
        self._label, self._config, self._store = label, config, store
        self._benchmarks = {benchmark.name: benchmark for benchmark in benchmarks}
        self._texts = texts
        self._tools_off = frozenset(generation.tools_off)
        self._settings: Sequence[object] = ()
        if own_tools:
            self._tools_off = frozenset(generation.tools.specs).difference(available_tools(generation))
            self._settings = _settings(generation, self._tools_off)
        self._digests = {name: self._digest(*_decisive(b)) for name, b in self._benchmarks.items()}
        self._predictions: dict[str, dict[int, Prediction]] = {}
        self._results: dict[str, BenchmarkResult] = {}
        self._running_texts: dict[str, RunningTextResult] = {}
        self._text_digests: dict[str, str] = {}
        self._held_out: tuple[float | None, PerplexityResult | None] = None, None
        self._held_out_digest = ""

    def run(self, executor: Executor) -> None:
        """Compute what is not stored, and store it."""
        generation = self._config.generation
        tasks = [*self._perplexity_tasks(), *self._chunks()]
        tools = set() if generation.calls_disabled else set(generation.tools.specs) - self._tools_off
        left = sum(len(task.questions) for task in tasks if isinstance(task, Chunk))
        with tqdm(desc=self._label, total=left, unit=" questions", leave=False) as bar:
            for task, result in executor.results(generation, tools, tasks):
                self._add(task, result)
                bar.update(len(task.questions) if isinstance(task, Chunk) else 0)

    def result(self) -> ModelResult:
        """What is known by now."""
        generation = self._config.generation
        perplexity, held_out = self._held_out
        return ModelResult(
            model=generation.model.path,
            k=generation.k,
            disabled=generation.disabled,
            tools_off=tuple(sorted(self._tools_off)),
            benchmarks={name: self._results[name] for name in self._benchmarks if name in self._results},
            running_texts={
                name: self._running_texts[name] for name in self._texts if name in self._running_texts
            },
            perplexity=perplexity,
            held_out=held_out,
            held_out_fingerprint=self._held_out_digest,
        )

    def predictions(self) -> list[Prediction]:
        """Those of all finished benchmarks, in order."""
        return [prediction for name in self._results for prediction in self._in_order(name)]

    def _in_order(self, name: str) -> list[Prediction]:
        return [self._predictions[name][index] for index in range(len(self._benchmarks[name].questions))]

    def _chunks(self) -> Iterator[Chunk]:
        """The questions that are not stored. Stored benchmarks are finished here."""
        config, generation = self._config, self._config.generation
        for name, benchmark in self._benchmarks.items():
            known = self._store.known(name, self._digests[name], benchmark.questions) if self._store else {}
            self._predictions[name] = known
            if len(known) == len(benchmark.questions):
                logger.info("%s: the stored result of %s is used again", self._label, name)
                self._finish(name)
                continue
            if known:
                logger.info("%s: %d of %d questions of %s are stored", self._label, len(known),
                            len(benchmark.questions), name)  # fmt: skip
            tools_on = set(generation.tools.specs) - self._tools_off - benchmark.tools_off
            params = DecodingParams.of(generation, tools_on)
            left = [index for index in range(len(benchmark.questions)) if index not in known]
            size = max(_CHUNK, 2 * config.batch_size)
            for indices in (tuple(left[start : start + size]) for start in range(0, len(left), size)):
                yield Chunk(
                    benchmark=name,
                    indices=indices,
                    questions=tuple(benchmark.questions[index] for index in indices),
                    params=replace(params, stop_at_newline=benchmark.first_line),
                    date=generation.date,
                    batch_size=config.batch_size,
                )

    def _perplexity_tasks(self) -> Iterator[Task]:
        """The held-out and running texts whose perplexity is not stored; none where calls are possible.

        The probability of a text is a sum over all calls that the model could make in it, which is
        intractable (footnote 8).
        """
        config = self._config
        disabled = config.generation.disabled or config.generation.k == 0 or config.disabled_perplexity
        calls_on = not (disabled or config.plain_perplexity)
        how = (disabled, calls_on)
        if calls_on and (self._texts or config.perplexity):
            logger.info(_NO_CALLS_ONLY, self._label)
        if config.perplexity and not calls_on:
            self._held_out_digest = self._digest(*how, "perplexity", *input_states(config.perplexity))
            known = self._store.held_out(self._held_out_digest) if self._store else None
            if known is not None:
                self._held_out = known
            else:
                corpus = CorpusConfig(paths=config.perplexity)
                yield HeldOutTask(files=tuple(list_files(corpus)), corpus=corpus, disabled=disabled)
        for name, text in self._texts.items():
            parts = "running text", text.text, config.window, config.stride
            digest = self._text_digests[name] = self._digest(*how, *parts)
            stored = self._store.running_text(name, digest) if self._store else None
            if calls_on:
                stored = RunningTextResult.without_perplexity(text.words, text.lines, text.articles)
            if stored is not None:
                self._running_texts[name] = stored.model_copy(update={"fingerprint": digest})
                continue
            yield RunningTextTask(
                name=name, text=text, window=config.window, stride=config.stride, disabled=disabled
            )

    def _add(self, task: Task, result: TaskResult) -> None:
        """Store the result of a task, and the benchmark if that was its last one."""
        if isinstance(task, Chunk):
            assert isinstance(result, list)
            name = task.benchmark
            chunk = dict(zip(task.indices, result, strict=True))
            self._predictions[name] |= chunk
            if len(self._predictions[name]) < len(self._benchmarks[name].questions):
                if self._store is not None:
                    self._store.add_part(self._digests[name], chunk)
                return
            self._finish(name)
        elif isinstance(task, HeldOutTask):
            assert isinstance(result, tuple)
            self._held_out = result
        else:
            assert isinstance(result, RunningTextResult)
            digest = self._text_digests[task.name]
            self._running_texts[task.name] = result.model_copy(update={"fingerprint": digest})
        if self._store is not None:
            self._store.save(self.result())
            if isinstance(task, Chunk):
                self._store.remove_parts(self._digests[task.benchmark])

    def _finish(self, name: str) -> None:
        predictions, digest = self._in_order(name), self._digests[name]
        self._results[name] = summarise(predictions, digest, self._benchmarks[name].left_out)
        if self._store is not None:
            self._store.benchmark(name, digest, predictions)

    def _digest(self, *parts: object) -> str:
        """The fingerprint of a result; empty if the settings are not known."""
        return fingerprint([*self._settings, *parts]) if self._settings else ""


def _settings(generation: GenerateConfig, tools_off: Collection[str]) -> list[object]:
    """What decides every result of a model: settings, and the state of the files that they name."""
    used = [tool for tool in generation.tools.specs if tool not in tools_off]
    models = map(staged_source, model_inputs(generation.model.path))
    files = [*models, *files_read(generation.tools, used)]
    settings: list[object] = [__version__, generation, sorted(tools_off), *input_states(files)]
    if generation.date is None and any(generation.tools.spec(tool).dated for tool in used):
        settings.append(datetime.date.today().isoformat())  # dated tools answer with it
    return settings


def _decisive(benchmark: Benchmark) -> list[object]:
    """What decides the result of a benchmark."""
    questions = [question.model_dump(exclude={"tools_off"}) for question in benchmark.questions]
    # Sorted, because the order of a set changes from process to process.
    parts: list[object] = [sorted(benchmark.tools_off), questions]
    return parts if benchmark.first_line else [*parts, "all lines"]
