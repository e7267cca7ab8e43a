"""Step 8: evaluates models on benchmarks and held-out texts (paper section 4).

In: one EvaluateConfig per label. The `evaluate` command has one label, the demo four (base, plain,
disabled, toolformer). Out: the files described in results.py. Decoding is in pipeline.inference,
scores are in scoring.py. Only the first line of a continuation is scored.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from tqdm import tqdm

from pipeline.base.config import CorpusConfig, EvaluateConfig, GenerateConfig, ModelConfig
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus, require_readable
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.questions import Benchmark, read_benchmark
from pipeline.evaluation.results import (
    Evaluation,
    EvaluationError,
    ModelResult,
    PerplexityResult,
    Prediction,
    ResultStore,
    summarise,
)
from pipeline.evaluation.scoring import is_right
from pipeline.inference.call_parser import callable_tools
from pipeline.inference.decoding import DecodingParams
from pipeline.inference.generator import Generator, available_tools
from tools_service.base.fingerprint import fingerprint, input_states
from tools_service.base.version import __version__
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import files_read

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[\w-]+")
_HELD_OUT_TOKENS = 1_024  # the length of a training example (Appendix B)


def evaluate(configs: Mapping[str, EvaluateConfig], tools: ToolClient | None = None) -> Evaluation:
    """Evaluates the model of each configuration under its label; returns the last output's content.

    Without `tools`, the available tools start in this process; the others are switched off. A model
    stays loaded if the next configuration names the same one. All input files are checked before
    the first model is loaded. A result is stored as soon as it is there; one that was stored before
    is used again if nothing that decides it has changed, but not with `tools` of the caller. Raises
    EvaluationError, QuestionError, OutputError.
    """
    inputs = {label: _check_inputs(label, config) for label, config in configs.items()}
    evaluation = Evaluation(models={})
    loaded: tuple[ModelConfig, LanguageModel] | None = None
    for label, config in configs.items():
        model_config = config.generation.model
        if loaded is None or loaded[0] != model_config:
            loaded = None  # frees the memory of the previous model first
            loaded = model_config, load_language_model(model_config)
        store, benchmarks = inputs[label]
        result, _ = evaluate_model(label, config, loaded[1], benchmarks, tools, store)
        evaluation = store.save(result)
    return evaluation


def evaluate_model(
    label: str,
    config: EvaluateConfig,
    model: LanguageModel,
    benchmarks: Sequence[Benchmark],
    tools: ToolClient | None = None,
    store: ResultStore | None = None,
) -> tuple[ModelResult, list[Prediction]]:
    """The results of one model, and the predictions that it made now. Writes into `store` only."""
    generation = config.generation
    tools_off = frozenset(generation.tools_off)
    settings: list[object] = []  # what decides every result; unknown with tools of the caller
    if tools is None:
        available = available_tools(generation)
        tools_off = frozenset(generation.tools.specs).difference(available)
        settings = _settings(generation, tools_off)
        tools = start_local_tools(generation.tools, available)
    fingerprints = {b.name: _fingerprint(settings, b) if settings else "" for b in benchmarks}
    stored = {name: store.benchmark(name, digest) for name, digest in fingerprints.items()} if store else {}
    results = {name: result for name, result in stored.items() if result is not None}
    result = ModelResult(
        model=generation.model.path,
        k=generation.k,
        disabled=generation.disabled,
        tools_off=tuple(sorted(tools_off)),
        benchmarks=results,
    )
    predictions: list[Prediction] = []
    generator = Generator(model, tools)
    for benchmark in benchmarks:
        if benchmark.name in results:
            logger.info("%s: the stored result of %s is used again", label, benchmark.name)
            continue
        params = DecodingParams(
            k=generation.k,
            disabled=generation.disabled,
            tools=callable_tools(generation.tools.declared),
            tools_off=tools_off | benchmark.tools_off,
            max_new_tokens=generation.max_new_tokens,
            max_call_tokens=generation.max_call_tokens,
            stop_at_newline=True,
        )
        answered = list(_predictions(label, benchmark, generator, params, config))
        results[benchmark.name] = summarise(answered, fingerprints[benchmark.name])
        in_order = {b.name: results[b.name] for b in benchmarks if b.name in results}
        result = result.model_copy(update={"benchmarks": in_order})
        if store is not None:
            store.save(result, benchmark.name, answered)
        predictions += answered
    digest = ""
    if settings and config.perplexity:
        digest = fingerprint([*settings, "perplexity", *input_states(config.perplexity)])
    known = store.held_out(digest) if store else None
    value, held_out = known or _held_out_perplexity(config, model)
    update = {"perplexity": value, "held_out": held_out, "held_out_fingerprint": digest}
    return result.model_copy(update=update), predictions


def _settings(generation: GenerateConfig, tools_off: Collection[str]) -> list[object]:
    """What decides every result of a model: settings, and the state of the files that they name."""
    used = [tool for tool in generation.tools.specs if tool not in tools_off]
    files = [generation.model.path, *files_read(generation.tools, used)]
    settings: list[object] = [__version__, generation, sorted(tools_off), *input_states(files)]
    if generation.date is None and any(generation.tools.spec(tool).dated for tool in used):
        settings.append(datetime.date.today().isoformat())  # dated tools answer with it
    return settings


def _fingerprint(settings: Sequence[object], benchmark: Benchmark) -> str:
    questions = [question.model_dump(exclude={"tools_off"}) for question in benchmark.questions]
    # Sorted, because the order of a set changes from process to process.
    return fingerprint([*settings, sorted(benchmark.tools_off), questions])


def _check_inputs(label: str, config: EvaluateConfig) -> tuple[ResultStore, list[Benchmark]]:
    """Where results go, and the benchmarks. Raises every error that can be found without the model."""
    if not _LABEL.fullmatch(label):
        raise EvaluationError(f"label {label!r}: use letters, digits, - and _; it names a file")
    if not config.benchmarks and not config.perplexity:
        raise EvaluationError("nothing to evaluate: name question files (benchmarks) or texts (perplexity)")
    store = ResultStore(config.output, label)
    if config.perplexity:
        corpus = CorpusConfig(paths=config.perplexity)
        require_readable(list_files(corpus), corpus)
    benchmarks = [read_benchmark(path, config.generation.tools.specs) for path in config.benchmarks]
    for name, count in Counter(benchmark.name for benchmark in benchmarks).items():
        if count > 1:
            raise EvaluationError(f"benchmarks: two files are called {name}.jsonl; results are named by file")
    return store, benchmarks


def _predictions(
    label: str, benchmark: Benchmark, generator: Generator, params: DecodingParams, config: EvaluateConfig
) -> Iterator[Prediction]:
    """The predictions of a benchmark, in the order of its questions."""
    questions = benchmark.questions
    prompts = [question.prompt for question in questions]
    dates = [question.date or config.generation.date for question in questions]
    generations = generator.generate(prompts, params, dates, config.batch_size)
    pairs = zip(questions, generations, strict=True)
    title = f"{label}: {benchmark.name}"
    for question, generation in tqdm(pairs, title, len(questions), unit="questions", leave=False):
        right = is_right(question.scoring, generation.text, question.answers)
        yield Prediction(benchmark.name, question, generation, right)


def _held_out_perplexity(
    config: EvaluateConfig, model: LanguageModel
) -> tuple[float | None, PerplexityResult | None]:
    """Perplexity on the held-out files; without <API> for a model that makes no calls."""
    if not config.perplexity:
        return None, None
    max_tokens = min(_HELD_OUT_TOKENS, model.max_positions - len(model.call_tokens.bos))
    corpus = CorpusConfig(paths=config.perplexity, max_tokens=max_tokens)
    texts = list(read_corpus(list_files(corpus), corpus, lambda text: len(model.encode([text])[0].ids)))
    usable = [text.text for text in texts if text.skipped is None]
    calls_disabled = config.generation.disabled or config.generation.k == 0
    value, counts = perplexity(model, usable, disabled=calls_disabled)
    return value, counts.model_copy(update={"skipped": len(texts) - len(usable)})
