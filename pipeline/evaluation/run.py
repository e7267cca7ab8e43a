"""Step 8: models, benchmarks and held-out texts become evaluation.json (paper section 4).

In: an EvaluateConfig by label, so that one command evaluates one model and the demo four (base, plain,
disabled, toolformer) in the same way. Out: the files that results.py describes. Scores are scoring.py's,
decoding is inference.py's; here a model meets its questions. Of a continuation its first line is scored.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from pipeline.base.config import CorpusConfig, EvaluateConfig, GenerateConfig, ModelConfig
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus, require_readable
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.questions import Benchmark, read_benchmark
from pipeline.evaluation.results import (
    BenchmarkResult,
    Evaluation,
    EvaluationError,
    ModelResult,
    PerplexityResult,
    Prediction,
    store,
    summarise,
)
from pipeline.evaluation.scoring import is_right
from pipeline.inference.generator import Generation, Generator
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import TOOL_NAMES, ToolName
from tools_service.tools.registry import ToolUnavailableError, require_available

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[\w-]+")
_HELD_OUT_TOKENS = 1_024  # the length of the training's examples (Appendix B)


def evaluate(configs: Mapping[str, EvaluateConfig], tools: ToolClient | None = None) -> Evaluation:
    """Evaluate the model of each configuration under its label; all results of the last one's output.

    Without `tools` those that the configuration can have are started in this process. A tool that cannot be
    had is switched off. The model of a configuration is kept if the next one names the same. Every question
    file is read before the first model is.
    """
    benchmarks = {label: _prepared(label, config) for label, config in configs.items()}
    results = Evaluation(models={})
    loaded: tuple[ModelConfig, LanguageModel] | None = None
    for label, config in configs.items():
        if loaded is None or loaded[0] != config.generation.model:
            loaded = None  # before the next one is loaded: two may not fit
            loaded = config.generation.model, load_language_model(config.generation.model)
        result, predictions = evaluate_model(label, config, loaded[1], benchmarks[label], tools)
        results = store(config.output, label, result, predictions)
    return results


def evaluate_model(
    label: str,
    config: EvaluateConfig,
    model: LanguageModel,
    benchmarks: Sequence[Benchmark],
    tools: ToolClient | None = None,
) -> tuple[ModelResult, list[Prediction]]:
    """One model's results and predictions; nothing is written."""
    generation = config.generation
    off = frozenset(generation.tools_off)
    if tools is None:
        at_hand = tools_at_hand(generation)
        off = frozenset(TOOL_NAMES).difference(at_hand)
        tools = start_local_tools(generation.tools, at_hand)
    predictions: list[Prediction] = []
    found: dict[str, BenchmarkResult] = {}
    for benchmark in benchmarks:
        generator = Generator(
            model,
            tools,
            k=generation.k,
            disabled=generation.disabled,
            tools_off=off | benchmark.tools_off,
        )
        answered = list(_answer(label, benchmark, generator, config))
        found[benchmark.name] = summarise(answered)
        predictions += answered
    value, held_out = _perplexity(config, model)
    result = ModelResult(
        model=generation.model.path,
        k=generation.k,
        disabled=generation.disabled,
        tools_off=tuple(sorted(off)),
        benchmarks=found,
        perplexity=value,
        held_out=held_out,
    )
    return result, predictions


def tools_at_hand(config: GenerateConfig) -> tuple[ToolName, ...]:
    """The tools that are not switched off and can be had; a model may have learned fewer than there are."""
    tools: list[ToolName] = []
    for tool in TOOL_NAMES:
        if tool in config.tools_off:
            continue
        try:
            require_available([tool], config.tools, field="tools_off")
        except ToolUnavailableError as error:
            logger.warning("%s is switched off: %s", tool, error)
        else:
            tools.append(tool)
    return tuple(tools)


def _prepared(label: str, config: EvaluateConfig) -> list[Benchmark]:
    """The benchmarks of a configuration that can be run; everything wrong with it is raised here."""
    if not _LABEL.fullmatch(label):
        raise EvaluationError(f"label {label!r}: use letters, digits, - and _; it names a file")
    if not config.benchmarks and not config.perplexity:
        raise EvaluationError("nothing to evaluate: name question files (benchmarks) or texts (perplexity)")
    Evaluation.read(config.output)
    if config.perplexity:
        corpus = CorpusConfig(paths=config.perplexity)
        require_readable(list_files(corpus), corpus)
    benchmarks = [read_benchmark(path) for path in config.benchmarks]
    twice = [
        name for name, number in Counter(benchmark.name for benchmark in benchmarks).items() if number > 1
    ]
    if twice:
        raise EvaluationError(f"benchmarks: two files are called {twice[0]}.jsonl; results are named by file")
    return benchmarks


def _answer(
    label: str, benchmark: Benchmark, generator: Generator, config: EvaluateConfig
) -> Iterator[Prediction]:
    """The predictions in the questions' order; prompts of like length are decoded together."""
    generation, questions = config.generation, benchmark.questions
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt))
    made: dict[int, Generation] = {}
    with tqdm(total=len(order), desc=f"{label}: {benchmark.name}", unit="questions", leave=False) as bar:
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            answers = generator.generate(
                [questions[index].prompt for index in batch],
                [questions[index].date or generation.date for index in batch],
                max_new_tokens=generation.max_new_tokens,
                stop_at_newline=True,
            )
            made |= zip(batch, answers, strict=True)
            bar.update(len(batch))
    for index, question in enumerate(questions):
        right = is_right(question.scoring, made[index].text, question.answers)
        yield Prediction(benchmark.name, question, made[index], right)


def _perplexity(config: EvaluateConfig, model: LanguageModel) -> tuple[float | None, PerplexityResult | None]:
    """On the passages of the held-out files; a model that does not call is measured without <API>."""
    if not config.perplexity:
        return None, None
    room = min(_HELD_OUT_TOKENS, model.max_positions - len(model.call_tokens.bos))
    corpus = CorpusConfig(paths=config.perplexity, max_tokens=room)
    texts = list(read_corpus(list_files(corpus), corpus, lambda text: len(model.encode([text])[0].ids)))
    usable = [text.text for text in texts if text.skipped is None]
    found = perplexity(model, usable, disabled=config.generation.disabled or config.generation.k == 0)
    held_out = PerplexityResult(
        texts=found.texts, tokens=found.tokens, left_out=found.left_out, skipped=len(texts) - len(usable)
    )
    return found.value, held_out
