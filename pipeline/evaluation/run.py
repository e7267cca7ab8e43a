"""Step 8: evaluates models on benchmarks and held-out texts (paper section 4).

    inputs ─► tasks of a label ─► executor (this process, or actors on Ray) ─► chunks ─► evaluation.json

In: one EvaluateConfig per label. Out: the files described in results.py and store.py. The same command
resumes a killed run: chunks, benchmarks and perplexities that are stored under the same fingerprint are not
computed again. Decoding is in pipeline.inference, scores are in scoring.py, published files in
pipeline.benchmarks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

from pipeline.base.config import CorpusConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.benchmarks.wikitext import RunningText
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import require_readable
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.executors import LocalExecutor, executor
from pipeline.evaluation.inputs import Inputs, read_inputs
from pipeline.evaluation.label_run import LabelRun
from pipeline.evaluation.paired import store_paired_tests
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.questions import Benchmark
from pipeline.evaluation.results import Evaluation, EvaluationError, ModelResult
from pipeline.evaluation.store import ResultStore
from pipeline.evaluation.tasks import Worker
from tools_service.tools.client import ToolClient

_LABEL = re.compile(r"[\w-]+")


def evaluate(configs: Mapping[str, EvaluateConfig], tools: ToolClient | None = None) -> Evaluation:
    """Evaluates the model of each configuration under its label; returns the last output's content.

    On Ray or in this process, as the first configuration's `ray` says. Without `tools`, the available tools
    are started; the others are switched off. A model stays loaded if the next configuration names the same
    one. All input files are checked before the first model is loaded. A result is stored as soon as it is
    there; one that was stored before is used again if nothing that decides it has changed, but not with
    `tools` of the caller. Raises EvaluationError, QuestionError, OutputError, OutputInUseError.
    """
    read: dict[object, Inputs] = {}  # several labels have the same benchmarks
    inputs = {label: _check_inputs(label, config, read, configs) for label, config in configs.items()}
    evaluation = Evaluation(models={})
    with ExitStack() as stack:
        for store, _ in inputs.values():
            stack.enter_context(store.locked())
        chosen = stack.enter_context(executor(list(configs.values()), tools))
        for label, config in configs.items():
            store, found = inputs[label]
            run = LabelRun(label, config, found.benchmarks, found.texts, store, own_tools=tools is None)
            run.run(chosen)
            evaluation = store.save(run.result())
            store.remove_parts()
        for output in {config.output for config in configs.values()}:
            choices = {label: c.compare_with for label, c in configs.items() if c.output == output}
            evaluation = store_paired_tests(output, choices)
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
    """The results of one model in this process, and its predictions in order. Writes into `store` only."""
    run = LabelRun(label, config, benchmarks, texts or {}, store, own_tools=tools is None)
    run.run(LocalExecutor(tools, Worker((config.generation.model, model))))
    return run.result(), run.predictions()


def _check_inputs(
    label: str, config: EvaluateConfig, read: dict[object, Inputs], labels: Collection[str]
) -> tuple[ResultStore, Inputs]:
    """Where results go, and the benchmarks, from `read` if they are there.

    Raises every error that can be found without the model.
    """
    if not _LABEL.fullmatch(label):
        raise EvaluationError(f"label {label!r}: use letters, digits, - and _; it names a file")
    if not config.benchmarks and not config.perplexity:
        raise EvaluationError("nothing to evaluate: name question files (benchmarks) or texts (perplexity)")
    store = ResultStore(config.output, label)
    known = [*Evaluation.read(config.output).models, *labels]
    if config.compare_with is not None and config.compare_with not in known:
        raise EvaluationError(
            f"--compare-with: no model {config.compare_with!r} in {config.output}; there are "
            f"{', '.join(dict.fromkeys(known))}"
        )
    if config.perplexity:
        corpus = CorpusConfig(paths=config.perplexity)
        require_readable(list_files(corpus), corpus)
    tools = config.generation.tools.specs
    key = (config.benchmarks, config.first_line, tuple(tools))
    if key not in read:
        read[key] = read_inputs(config.benchmarks, tools, first_line=config.first_line)
    return store, read[key]
