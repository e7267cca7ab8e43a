"""The `demo` command: all steps, with the baselines, and the results (paper sections 2, 4).

In: a recipe (`demo` is the embedded world, but any recipe works). Out, in the recipe's folders:
annotations/, augmented/, model/, model-plain/ (fine-tuned on the same texts without their calls:
the paper's M + CC) and evaluation.json with the four models base, plain, disabled and toolformer.
Printed: the counts by tool, some kept calls, the table of results. A step that has finished with
the same configuration and inputs is skipped (steps.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.base.config import AnnotateConfig, FinetuneConfig, MergeConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.benchmarks.published import source_of
from pipeline.cli.evaluating import with_model
from pipeline.cli.recipes import Recipe
from pipeline.cli.reporting import report_at_end
from pipeline.cli.steps import PipelineStep, StepCache
from pipeline.evaluation.results import Evaluation
from pipeline.report.run_parts import RunParts
from pipeline.report.tables import console, report
from pipeline.storage.kinds import ANNOTATION, AUGMENTED, EVALUATION, FINE_TUNED
from pipeline.storage.manifest import MANIFEST, read_finished
from tools_service.base.errors import ConfigurationError
from tools_service.base.locks import output_lock
from tools_service.base.ownership import OutputKind
from tools_service.base.settings import Frozen
from tools_service.tools.registry import files_read

StepConfig = AnnotateConfig | MergeConfig | FinetuneConfig | EvaluateConfig
_KINDS: dict[type[Frozen], OutputKind] = {
    AnnotateConfig: ANNOTATION,
    MergeConfig: AUGMENTED,
    FinetuneConfig: FINE_TUNED,
    EvaluateConfig: EVALUATION,
}


def demo(recipe: Recipe, *, force: bool = False, with_report: bool = True) -> None:
    """Run every step that is not finished (all with `force`), then print the report."""
    recipe = chained(recipe)
    steps = steps_of(recipe)
    path = recipe.evaluate.output.with_name("steps.json")
    with output_lock(path):
        cache = StepCache.open(path)
        for step in steps:
            cache.run(step, force=force)
    files = {step.name: step.output for step in steps}
    tables = report(recipe.annotate.output, recipe.evaluate.output, files)
    console().print("", tables)
    report_at_end(recipe.evaluate.output.parent, wanted=with_report, parts=_parts(recipe))


def _parts(recipe: Recipe) -> RunParts:
    """What the report shows, wherever the folders are."""
    return RunParts(
        annotations=[recipe.annotate.output],
        augmented=[recipe.merge.output],
        models=[recipe.finetune.output, plain(recipe.finetune).output],
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
    """The four evaluations of section 4, by label."""
    evaluate, finetune = recipe.evaluate, recipe.finetune
    evaluate = evaluate.model_copy(update={"compare_with": "plain"})
    disabled = evaluate.generation.model_copy(update={"disabled": True})
    compared = evaluate.model_copy(update={"disabled_perplexity": True})  # as that of "disabled"
    return {
        "base": with_model(compared, finetune.model.path),
        "plain": with_model(compared, str(plain(finetune).output)),
        "disabled": evaluate.model_copy(update={"generation": disabled}),
        "toolformer": evaluate,
    }


def steps_of(recipe: Recipe) -> list[PipelineStep]:
    """The chain of steps, each with everything that decides its result."""
    annotate, merge, finetune, evaluate = recipe.annotate, recipe.merge, recipe.finetune, recipe.evaluate
    baseline = plain(finetune)
    method = annotate.method
    tool_inputs = files_read(annotate.tools, method.tools)
    prompts = [path for path in (method.prompts, *(method.of(t).prompt for t in method.tools)) if path]
    training_inputs = (finetune.model.path, merge.output / MANIFEST)
    models = (finetune.output / MANIFEST, baseline.output / MANIFEST)

    def step(name: str, config: StepConfig, *reads: str | Path) -> PipelineStep:
        return PipelineStep(
            name=name,
            config=config,
            reads=reads,
            output=config.output,
            kind=_KINDS[type(config)],
            run=partial(_run, config, recipe),
            problem=partial(_problem, config),
        )

    return [
        step("annotate", annotate, *annotate.corpus.paths, annotate.model.path, *tool_inputs, *prompts),
        step("merge", merge, annotate.output / MANIFEST),
        step("finetune", finetune, *training_inputs),
        step("finetune on plain texts", baseline, *training_inputs),
        step("evaluate", evaluate, *map(source_of, evaluate.benchmarks), *evaluate.perplexity, *models),
    ]


def _problem(config: StepConfig) -> str | None:
    """What is damaged or missing in the output of a finished step; None if it is whole."""
    from pipeline.augmentation.merge import merge_problem
    from pipeline.finetuning.run_folder import RunFolder

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

    if isinstance(config, AnnotateConfig):
        annotate(config)
    elif isinstance(config, MergeConfig):
        merge(config)
    elif isinstance(config, FinetuneConfig):
        finetune(config)
    else:
        evaluate(models_of(recipe))
