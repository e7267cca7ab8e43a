"""The `demo` command: all steps, with the baselines, and the results (paper sections 2, 4).

In: a recipe (`demo` is the embedded world, but any recipe works). Out, in the recipe's folders:
annotations/, augmented/, model/, model-plain/ (fine-tuned on the same texts without their calls:
the paper's M + CC) and evaluation.json with the four models base, plain, disabled and toolformer.
With several rounds (recipes.rounds_of), round-N/ has annotations/, augmented/ and model/ of each later one,
and evaluation.json its model as round-N.
The two fine-tunings run at the same time where their workers would leave cores idle.
Printed: which step runs and the time left (step_display.py), then the counts by tool, some kept calls,
the table of results, a verdict and prompts to try. A step that has finished with the same configuration
and inputs is skipped (steps.py).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline.base.config import AnnotateConfig, MergeConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.base.threads import in_thread
from pipeline.benchmarks.published import sources_of
from pipeline.cli import recipes
from pipeline.cli.evaluating import with_model
from pipeline.cli.recipes import Recipe, RecipeName, rounds_of
from pipeline.cli.reporting import report_at_end
from pipeline.cli.step_display import StepDisplay
from pipeline.cli.steps import BegunStep, PipelineStep, StepCache
from pipeline.evaluation.results import Evaluation
from pipeline.report.demo_summary import commands_to_try, summary
from pipeline.report.run_parts import RunParts
from pipeline.report.tables import console
from pipeline.storage.expected_texts import read_expected
from pipeline.storage.kinds import ANNOTATION, AUGMENTED, EVALUATION, FINE_TUNED
from pipeline.storage.manifest import MANIFEST, read_finished
from pipeline.storage.row_files import count_in_footers
from tools_service.base.adapters import model_inputs
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.locks import output_lock
from tools_service.base.ownership import OutputKind
from tools_service.base.settings import Frozen
from tools_service.base.standard_streams import redirected_output
from tools_service.tools.registry import files_read

StepConfig = AnnotateConfig | MergeConfig | FinetuneConfig | EvaluateConfig
_KINDS: dict[type[Frozen], OutputKind] = {
    AnnotateConfig: ANNOTATION,
    MergeConfig: AUGMENTED,
    FinetuneConfig: FINE_TUNED,
    EvaluateConfig: EVALUATION,
}


# Seconds by step of the recipe `demo` on two cores of an AMD EPYC processor, for the time left. Those of a
# later round are about those of the first. The plain texts add so much to fine-tuning beside them.
_USUAL_S = {"annotate": 175, "merge": 1, "finetune": 105, "finetune on plain texts": 36, "evaluate": 22}

_SUMMARIES = {
    "annotate": "the model writes calls, the filter keeps those that help",
    "merge": "the kept calls go into the texts, C*",
    "finetune": "the model learns from C*",
    "finetune on plain texts": "the baseline, from the same texts without calls",
    "evaluate": "the models answer questions",
}
_SMALL_BYTES = 64 * 2**20  # of weights
_ROUND = ", round "  # in the names of the steps of a later round

_KNOWS = """\
Try the model. It knows only the demo's world: made-up people and towns, small numbers, and the
words of its pages. On other text it talks nonsense. These questions it has answered:
"""


def demo(recipe: Recipe, name: RecipeName = "demo", *, force: bool = False, with_report: bool = True) -> None:
    """Run every step that is not finished (all with `force`), then print the summary.

    `name` is that of the recipe. What the steps print goes to demo.log beside the evaluation.
    """
    recipe = chained(recipe)
    path, log = (recipe.evaluate.output.with_name(file) for file in ("steps.json", "demo.log"))
    with output_lock(path):
        _run_steps(steps_of(recipe), StepCache.open(path), log, _usual_s(recipe), force=force)
    rounds = [(one.annotate.output, one.merge.output) for one in rounds_of(recipe)]
    console().print(summary(*rounds[0], recipe.evaluate.output, rounds[1:]))
    command = _generate_command(recipe, name)
    if commands := list(commands_to_try(recipe.evaluate, command)):
        print(f"\n{_KNOWS}")
        for line in (*commands, command):  # not through rich: a wrapped command cannot be pasted
            print(f"  {line}")
    print(f"\nThe outputs are in {recipe.evaluate.output.parent}")
    report_at_end(recipe.evaluate.output.parent, wanted=with_report, parts=_parts(recipe))


def _run_steps(
    steps: Sequence[PipelineStep], cache: StepCache, log: Path, usual_s: Mapping[str, float], *, force: bool
) -> None:
    from pipeline.runtime.connection import one_local_cluster

    try:
        with redirected_output(log) as stream, one_local_cluster():
            display = StepDisplay(stream, steps, usual_s)
            with display.warnings():
                for group in _groups(steps, together=_is_local()):
                    begun = []
                    for step in group:
                        if (each := cache.begin(step, force=force)) is None:
                            display.finished_before(step)
                        else:
                            begun.append(each)
                    if begun:
                        with display.running(*(each.step for each in begun)):
                            _run_group(begun, cache)
    except Exception:
        print(f"The log of the steps: {log}", file=sys.stderr)
        raise


def _groups(steps: Sequence[PipelineStep], *, together: bool) -> Iterator[list[PipelineStep]]:
    """The steps in order, one by one or, if `together`, with those that may run at the same time."""
    group: list[PipelineStep] = []
    for step in steps:
        group.append(step)
        if not (together and step.beside_next):
            yield group
            group = []


def _is_local() -> bool:
    """Whether the steps start a Ray of their own, on this machine."""
    from tools_service.runtime.address import LOCAL, chosen_address

    return chosen_address(None, "ray.address")[0] == LOCAL


def _run_group(group: Sequence[BegunStep], cache: StepCache) -> None:
    """Run the steps, several each in a thread. The first error ends the block, and the others with the
    cluster that they share."""
    if len(group) == 1:
        group[0].step.run()
        cache.finish(group[0])
        return
    with _room_for(each.step.config for each in group):
        threads = {in_thread(each.step.run, each.step.name): each for each in group}
        for future in as_completed(threads):
            # A step that ended beside the one that failed is done, too.
            for other, step in threads.items():
                if other.done() and not other.exception():
                    cache.finish(step)
            future.result()


@contextmanager
def _room_for(configs: Iterable[Frozen]) -> Iterator[None]:
    """A Ray connection for fine-tunings on CPUs at the same time: each by itself would end it for all."""
    from pipeline.finetuning.run import resource_request
    from pipeline.runtime.connection import ray_connection

    with ray_connection(resource_request([each for each in configs if isinstance(each, FinetuneConfig)])):
        yield


def _usual_s(recipe: Recipe) -> Mapping[str, float]:
    """The known durations; none for anything but the unchanged demo, in any number of rounds."""
    if recipe != chained(recipes.demo().model_copy(update={"rounds": recipe.rounds})):
        return {}
    return {step.name: _USUAL_S[step.name.partition(_ROUND)[0]] for step in steps_of(recipe)}


def _generate_command(recipe: Recipe, name: RecipeName) -> str:
    """`generate` with the model of this run, for the shell that runs this."""
    program = "toolformer"
    if Path(sys.argv[0]).stem != program:
        python = Path(sys.executable)
        on_path = shutil.which("python")
        is_active = on_path is not None and Path(on_path).absolute() == python
        program = f"{'python' if is_active else os.path.relpath(python)} -m pipeline"
    path = str(recipe.finetune.output)
    model = "" if path == recipes.RECIPES[name]().generate.model.path else f" --model {shlex.quote(path)}"
    return f"{program} generate --recipe {name}{model}"


def _parts(recipe: Recipe) -> RunParts:
    """What the report shows, wherever the folders are."""
    rounds = rounds_of(recipe)
    models = [one.finetune.output for one in rounds]
    return RunParts(
        annotations=[one.annotate.output for one in rounds],
        augmented=[one.merge.output for one in rounds],
        models=[models[0], plain(recipe.finetune).output, *models[1:]],
        evaluations=[recipe.evaluate.output],
    )


def chained(recipe: Recipe) -> Recipe:
    """`recipe` with each step reading the output of the step before, wherever that is."""
    merge = recipe.merge.model_copy(update={"annotations": (recipe.annotate.output,)})
    finetune = recipe.finetune.model_copy(update={"data": merge.output})
    evaluate = with_model(recipe.evaluate, str(finetune.output))
    return recipe.model_copy(update={"merge": merge, "finetune": finetune, "evaluate": evaluate})


def plain(finetune: FinetuneConfig) -> FinetuneConfig:
    """The baseline M + CC: the same texts in the same order, without their calls."""
    output = finetune.output.with_name(f"{finetune.output.name}-plain")
    return finetune.model_copy(update={"column": "plain", "output": output})


def models_of(recipe: Recipe) -> dict[str, EvaluateConfig]:
    """The four evaluations of section 4, by label, and one of each later round, beside that of the first."""
    evaluate, finetune = recipe.evaluate, recipe.finetune
    evaluate = evaluate.model_copy(update={"compare_with": "plain"})
    disabled = evaluate.generation.model_copy(update={"disabled": True})
    compared = evaluate.model_copy(update={"disabled_perplexity": True})  # as that of "disabled"
    of_round = {"disabled_perplexity": True, "compare_with": "toolformer"}
    return {
        "base": with_model(compared, finetune.model.path),
        "plain": with_model(compared, str(plain(finetune).output)),
        "disabled": evaluate.model_copy(update={"generation": disabled}),
        "toolformer": evaluate,
        **{
            f"round-{number}": one.evaluate.model_copy(update=of_round)
            for number, one in enumerate(rounds_of(recipe)[1:], 2)
        },
    }


def steps_of(recipe: Recipe) -> list[PipelineStep]:
    """The chain of steps, each with everything that decides its result."""
    baseline, evaluate = plain(recipe.finetune), recipe.evaluate

    def step(name: str, config: StepConfig, *reads: str | Path) -> PipelineStep:
        return PipelineStep(
            name=name,
            config=config,
            reads=reads,
            output=config.output,
            kind=_KINDS[type(config)],
            run=partial(_run, config, recipe),
            problem=partial(_problem, config),
            summary=_SUMMARIES.get(name.partition(_ROUND)[0], ""),
            share=partial(_share, config),
        )

    def of_round(number: int, one: Recipe) -> list[PipelineStep]:
        suffix = "" if number == 1 else f"{_ROUND}{number}"
        annotate, merge, finetune = one.annotate, one.merge, one.finetune
        method = annotate.method
        tool_inputs = files_read(annotate.tools, method.tools)
        prompts = [path for path in (method.prompts, *(method.of(t).prompt for t in method.tools)) if path]
        model = model_inputs(annotate.model.path)
        if number > 1:  # the model of the round before, which need not be there yet: an adapter, maybe
            model = [annotate.model.path, *model_inputs(recipe.finetune.model.path)]
        inputs: list[str | Path] = [*annotate.corpus.paths, *model, *tool_inputs, *prompts]
        return [
            step(f"annotate{suffix}", annotate, *inputs),
            step(f"merge{suffix}", merge, *(folder / MANIFEST for folder in merge.annotations)),
            step(f"finetune{suffix}", finetune, *model_inputs(finetune.model.path), merge.output / MANIFEST),
        ]

    rounds = rounds_of(recipe)
    by_round = [of_round(number, one) for number, one in enumerate(rounds, 1)]
    by_round[0][-1] = replace(by_round[0][-1], beside_next=_leaves_cores_idle(recipe.finetune))
    by_round[0].append(
        step(
            "finetune on plain texts", baseline, *model_inputs(baseline.model.path), baseline.data / MANIFEST
        )
    )
    benchmarks = [path for entry in evaluate.benchmarks for path in sources_of(entry)]
    models = [folder / MANIFEST for folder in (recipe.finetune.output, baseline.output)]
    models += [one.finetune.output / MANIFEST for one in rounds[1:]]
    return [*chain(*by_round), step("evaluate", evaluate, *benchmarks, *evaluate.perplexity, *models)]


def _leaves_cores_idle(config: FinetuneConfig) -> bool:
    """Whether workers wait for one another with nothing else to do, on CPUs, and two fine-tunings need no
    more memory than annotating: with a small model, the libraries of each process are most of it."""
    weights = [file.stat().st_size for file in Path(config.model.path).glob("*.safetensors")]
    return config.workers > 1 and not config.use_gpu and 0 < sum(weights) <= _SMALL_BYTES


def _share(config: StepConfig) -> float:
    """How much of a step's output there is, from 0 to 1; 0 if that cannot be told."""
    from pipeline.finetuning.checkpoints.run_folder import RunFolder
    from pipeline.finetuning.watching.metrics_log import steps_done

    with suppress(OSError, ValueError, ToolformerError):  # the files are being written
        if isinstance(config, AnnotateConfig) and (expected := read_expected(config.output)):
            return min(1.0, count_in_footers(config.output) / max(1, expected.texts))
        if isinstance(config, FinetuneConfig):
            return min(1.0, steps_done(RunFolder(config.output).metrics) / config.max_steps)
    return 0.0


def _problem(config: StepConfig) -> str | None:
    """What is damaged or missing in the output of a finished step; None if it is whole."""
    from pipeline.augmentation.merge import merge_problem
    from pipeline.finetuning.checkpoints.run_folder import RunFolder

    try:
        if isinstance(config, AnnotateConfig):
            read_finished(config.output)
        elif isinstance(config, MergeConfig):
            return merge_problem(config.output)
        elif isinstance(config, EvaluateConfig):
            Evaluation.read(config.output)
        else:
            RunFolder(config.output).require_result()
    except ConfigurationError as error:
        return str(error)
    return None


def _run(config: StepConfig, recipe: Recipe) -> None:
    """Run the step of `config`. The imports are here because torch and Ray take seconds."""
    from pipeline.annotation.run import annotate
    from pipeline.augmentation.merge import merge
    from pipeline.evaluation.run import evaluate
    from pipeline.finetuning.run import finetune
    from pipeline.runtime.connection import end_local_cluster

    if isinstance(config, AnnotateConfig):
        annotate(config)
    elif isinstance(config, MergeConfig):
        merge(config)
    elif isinstance(config, FinetuneConfig):
        finetune(config)
    else:
        end_local_cluster()
        evaluate(models_of(recipe))
