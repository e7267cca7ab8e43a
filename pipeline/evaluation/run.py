"""Step 8: evaluates models on benchmarks and held-out texts (paper section 4).

In: one EvaluateConfig per label. The `evaluate` command has one label, the demo four (base, plain,
disabled, toolformer). Out: the files described in results.py. Decoding is in pipeline.inference,
scores are in scoring.py, published files in pipeline.benchmarks.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from tqdm import tqdm

from pipeline.base.config import CorpusConfig, ModelConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.benchmarks.wikitext import RunningText
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus, require_readable
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.inputs import Inputs, read_inputs
from pipeline.evaluation.perplexity import perplexity, running_text_perplexity
from pipeline.evaluation.questions import Benchmark
from pipeline.evaluation.results import (
    Evaluation,
    EvaluationError,
    ModelResult,
    PerplexityResult,
    Prediction,
    ResultStore,
    RunningTextResult,
    summarise,
)
from pipeline.evaluation.scoring import is_right
from pipeline.inference.generator import Generator, available_tools
from pipeline.inference.params import DecodingParams
from tools_service.base.fingerprint import fingerprint, input_states
from tools_service.base.version import __version__
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import files_read

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[\w-]+")
_NO_CALLS_ONLY = "%s: no perplexity with calls on (paper section 4.3); add --generation.disabled"
_HELD_OUT_TOKENS = 1_024  # the length of a training example (Appendix B)


def evaluate(configs: Mapping[str, EvaluateConfig], tools: ToolClient | None = None) -> Evaluation:
    """Evaluates the model of each configuration under its label; returns the last output's content.

    Without `tools`, the available tools start in this process; the others are switched off. A model
    stays loaded if the next configuration names the same one. All input files are checked before
    the first model is loaded. A result is stored as soon as it is there; one that was stored before
    is used again if nothing that decides it has changed, but not with `tools` of the caller. Raises
    EvaluationError, QuestionError, OutputError.
    """
    read: dict[object, Inputs] = {}  # several labels have the same benchmarks
    inputs = {label: _check_inputs(label, config, read) for label, config in configs.items()}
    evaluation = Evaluation(models={})
    loaded: tuple[ModelConfig, LanguageModel] | None = None
    for label, config in configs.items():
        model_config = config.generation.model
        if loaded is None or loaded[0] != model_config:
            loaded = None  # frees the memory of the previous model first
            loaded = model_config, load_language_model(model_config)
        store, found = inputs[label]
        result, _ = evaluate_model(label, config, loaded[1], found.benchmarks, tools, store, found.texts)
        evaluation = store.save(result)
    return evaluation


def evaluate_model(
    label: str,
    config: EvaluateConfig,
    model: LanguageModel,
    benchmarks: Sequence[Benchmark],
    tools: ToolClient | None = None,
    store: ResultStore | None = None,
    texts: Mapping[str, RunningText] | None = None,
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
        tools_on = set(generation.tools.specs) - tools_off - benchmark.tools_off
        params = replace(DecodingParams.of(generation, tools_on), stop_at_newline=benchmark.first_line)
        answered = list(_predictions(label, benchmark, generator, params, config))
        results[benchmark.name] = summarise(answered, fingerprints[benchmark.name], benchmark.left_out)
        in_order = {b.name: results[b.name] for b in benchmarks if b.name in results}
        result = result.model_copy(update={"benchmarks": in_order})
        if store is not None:
            store.save(result, benchmark.name, answered)
        predictions += answered
    return result.model_copy(
        update=_perplexities(label, config, model, settings, store, texts or {})
    ), predictions


def _perplexities(
    label: str,
    config: EvaluateConfig,
    model: LanguageModel,
    settings: Sequence[object],
    store: ResultStore | None,
    texts: Mapping[str, RunningText],
) -> dict[str, object]:
    """The fields of the result about held-out and running texts; None where calls are possible.

    The probability of a text is a sum over all calls that the model could make in it, which is
    intractable (footnote 8).
    """
    calls_disabled = config.generation.disabled or config.generation.k == 0 or config.disabled_perplexity
    calls_on = not (calls_disabled or config.plain_perplexity)
    if calls_on and (texts or config.perplexity):
        logger.info(_NO_CALLS_ONLY, label)
    settings = [*settings, calls_disabled, calls_on] if settings else []
    digest, value, held_out = "", None, None
    if config.perplexity and not calls_on:
        if settings:
            digest = fingerprint([*settings, "perplexity", *input_states(config.perplexity)])
        known = store.held_out(digest) if store else None
        value, held_out = known or _held_out_perplexity(config, model, calls_disabled)
    results: dict[str, RunningTextResult] = {}
    for name, text in texts.items():
        parts = [*settings, "running text", text.text, config.window, config.stride]
        text_digest = fingerprint(parts) if settings else ""
        stored = store.running_text(name, text_digest) if store else None
        if calls_on:
            found = RunningTextResult.without_perplexity(text.words, text.lines, text.articles)
        else:
            found = stored or running_text_perplexity(
                model, text, config.window, config.stride, disabled=calls_disabled
            )
        results[name] = found.model_copy(update={"fingerprint": text_digest})
    return {
        "perplexity": value,
        "held_out": held_out,
        "held_out_fingerprint": digest,
        "running_texts": results,
    }


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
    parts = [*settings, sorted(benchmark.tools_off), questions]
    return fingerprint(parts if benchmark.first_line else [*parts, "all lines"])


def _check_inputs(
    label: str, config: EvaluateConfig, read: dict[object, Inputs]
) -> tuple[ResultStore, Inputs]:
    """Where results go, and the benchmarks, from `read` if they are there.

    Raises every error that can be found without the model.
    """
    if not _LABEL.fullmatch(label):
        raise EvaluationError(f"label {label!r}: use letters, digits, - and _; it names a file")
    if not config.benchmarks and not config.perplexity:
        raise EvaluationError("nothing to evaluate: name question files (benchmarks) or texts (perplexity)")
    store = ResultStore(config.output, label)
    if config.perplexity:
        corpus = CorpusConfig(paths=config.perplexity)
        require_readable(list_files(corpus), corpus)
    tools = config.generation.tools.specs
    key = (config.benchmarks, config.first_line, tuple(tools))
    if key not in read:
        read[key] = read_inputs(config.benchmarks, tools, first_line=config.first_line)
    return store, read[key]


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
    config: EvaluateConfig, model: LanguageModel, disabled: bool
) -> tuple[float, PerplexityResult]:
    """Perplexity on the held-out files."""
    max_tokens = min(_HELD_OUT_TOKENS, model.max_positions - len(model.call_tokens.bos))
    corpus = CorpusConfig(paths=config.perplexity, max_tokens=max_tokens)
    texts = list(read_corpus(list_files(corpus), corpus, lambda text: len(model.encode([text])[0].ids)))
    usable = [text.text for text in texts if text.skipped is None]
    value, counts = perplexity(model, usable, disabled=disabled)
    return value, counts.model_copy(update={"skipped": len(texts) - len(usable)})
