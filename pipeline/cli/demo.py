"""All steps in a row, with the baselines, and what came of it: the `demo` command (paper sections 2 and 4).

In: a recipe (`demo` is the embedded world, but any will do). Out, in the recipe's folders: annotations/,
augmented/, model/, model-plain/ (fine-tuned on the same texts without their calls: the paper's M + CC) and
evaluation.json with the four models base, plain, disabled and toolformer. Printed: the funnel by tool, some
kept calls, the table. A step that is finished, from the same configuration and inputs, is not done again
(steps.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from pipeline.base.config import EvaluateConfig, FinetuneConfig
from pipeline.cli.recipes import Recipe
from pipeline.cli.steps import Step, StepCache
from pipeline.report.tables import report
from pipeline.storage.manifest import MANIFEST

LEDGER = "steps.json"


def demo(recipe: Recipe, *, force: bool = False) -> None:
    """Do every step that is not finished (all with `force`), then print the report."""
    recipe = chained(recipe)
    ledger = StepCache.open(recipe.evaluate.output.parent / LEDGER)
    for step in steps_of(recipe):
        ledger.do(step, force=force)
    files = {step.name: step.output for step in steps_of(recipe)}
    console().print("", report(recipe.annotate.output, recipe.evaluate.output, files))


def console() -> Console:
    """Where results are printed; wide enough for the tables where nothing says how wide it is."""
    return Console(width=None if sys.stdout.isatty() else 140)


def chained(recipe: Recipe) -> Recipe:
    """`recipe`, each step reading what the one before writes, whatever outputs were chosen."""
    merge = recipe.merge.model_copy(update={"annotations": (recipe.annotate.output,)})
    finetune = recipe.finetune.model_copy(update={"data": merge.output})
    evaluate = _with_model(recipe.evaluate, str(finetune.output))
    return recipe.model_copy(update={"merge": merge, "finetune": finetune, "evaluate": evaluate})


def plain(finetune: FinetuneConfig) -> FinetuneConfig:
    """The baseline M + CC: the same texts in the same order, without their calls."""
    output = finetune.output.with_name(f"{finetune.output.name}-plain")
    return finetune.model_copy(update={"column": "plain", "output": output})


def models_of(recipe: Recipe) -> dict[str, EvaluateConfig]:
    """The evaluations of section 4, by label."""
    evaluate, finetune = recipe.evaluate, recipe.finetune
    disabled = evaluate.generation.model_copy(update={"disabled": True})
    return {
        "base": _with_model(evaluate, finetune.model.path),
        "plain": _with_model(evaluate, str(plain(finetune).output)),
        "disabled": evaluate.model_copy(update={"generation": disabled}),
        "toolformer": evaluate,
    }


def steps_of(recipe: Recipe) -> list[Step]:
    """The chain, each step with everything that decides its result."""
    annotate, merge, finetune, evaluate = recipe.annotate, recipe.merge, recipe.finetune, recipe.evaluate
    without_calls = plain(finetune)
    learned: tuple[str | Path, ...] = (finetune.model.path, merge.output / MANIFEST)
    tools = annotate.tools
    world = [annotate.model.path, *tools.wikisearch.source, tools.qa.model, tools.mt.model]
    prompts = [annotate.method.prompts] if annotate.method.prompts else []
    return [
        Step(
            name="annotate",
            config=annotate,
            reads=(*annotate.corpus.paths, *world, *prompts),
            output=annotate.output,
            run=lambda: _annotate(recipe),
        ),
        Step(
            name="merge",
            config=merge,
            reads=(annotate.output / MANIFEST,),
            output=merge.output,
            run=lambda: _merge(recipe),
        ),
        Step(
            name="finetune",
            config=finetune,
            reads=learned,
            output=finetune.output,
            run=lambda: _finetune(finetune),
        ),
        Step(
            name="finetune on plain texts",
            config=without_calls,
            reads=learned,
            output=without_calls.output,
            run=lambda: _finetune(without_calls),
        ),
        Step(
            name="evaluate",
            config=evaluate,
            reads=(
                *evaluate.benchmarks,
                *evaluate.perplexity,
                finetune.output / MANIFEST,
                without_calls.output / MANIFEST,
            ),
            output=evaluate.output,
            run=lambda: _evaluate(recipe),
        ),
    ]


def _annotate(recipe: Recipe) -> None:
    from pipeline.annotation.run import annotate

    annotate(recipe.annotate)


def _merge(recipe: Recipe) -> None:
    from pipeline.augmentation.merge import merge

    merge(recipe.merge)


def _evaluate(recipe: Recipe) -> None:
    from pipeline.evaluation.run import evaluate

    evaluate(models_of(recipe))


def _finetune(config: FinetuneConfig) -> None:
    from pipeline.finetuning.run import finetune

    finetune(config)


def _with_model(evaluate: EvaluateConfig, path: str) -> EvaluateConfig:
    model = evaluate.generation.model.model_copy(update={"path": path})
    generation = evaluate.generation.model_copy(update={"model": model})
    return evaluate.model_copy(update={"generation": generation})
