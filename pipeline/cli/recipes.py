"""Recipes: presets for the whole method. The command line overrides any field by name.

`demo` is the embedded small world on two CPU cores. `single_gpu` is GPT-2 large on one GPU, the
smallest size at which the paper finds that tools help (section 4.4). `paper` is GPT-J with the
paper's settings (sections 4.1 and 4.2, Appendices A and B) on eight GPUs. Out: a `Recipe`, one
configuration per step. Paths are relative to the working folder, outputs are below runs/NAME.
Nothing checks here that a file, a model or a GPU exists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from pipeline.base.config import (
    AnnotateConfig,
    CorpusConfig,
    MergeConfig,
    MethodConfig,
    ModelConfig,
    RayConfig,
)
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.inference_config import CallLengths, EvaluateConfig, GenerateConfig
from tools_service.base.settings import Frozen
from tools_service.config import MTConfig, QAConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.spec import ToolMethod

C = TypeVar("C", bound=Frozen)
RecipeName = Literal["demo", "single_gpu", "paper"]
Rounds = Annotated[int, Field(ge=1, le=99)]
RUNS = Path("runs")
"""The folder in which each recipe has a folder of its own."""


class Recipe(Frozen):
    """The whole method: one configuration per step, and how often it is gone through."""

    rounds: Rounds = 1
    """Rounds: each one after the first annotates again with the model of the round before, unites the calls
    of all rounds and fine-tunes from the base model (section 7; docs/rounds.md)."""
    round_prompts: bool = True
    """Give the tools' prompts to the fine-tuned model of a later round. False: only the text."""
    annotate: AnnotateConfig
    merge: MergeConfig
    finetune: FinetuneConfig
    generate: GenerateConfig
    evaluate: EvaluateConfig


def demo() -> Recipe:
    """The embedded world (demo/): small models on two CPU cores, in minutes and without network."""
    # The paper's k = 20 and m = 10 take several times the work and find hardly any more calls here.
    calculator = mt = ToolMethod(tau_s=0.0, k=5, m=5, tau_f=0.5, max_call_tokens=60)
    benchmarks = ("calculator", "wikisearch", "qa", "calendar", "mt", "plain")
    return _recipe(
        "demo",
        AnnotateConfig(
            # Pretraining used up to 480 tokens, which must hold prompt, text twice and call.
            corpus=CorpusConfig(paths=("demo/pages",), max_tokens=112),
            model=ModelConfig(
                path="demo/models/annotator", dtype="float32", device="cpu", max_batch_tokens=4_096
            ),
            method=MethodConfig.model_validate(
                {"prompts": Path("demo/prompts"), "calculator": calculator, "mt": mt}
            ),
            tools=ToolsConfig.model_validate(
                {
                    "wikisearch": WikiSearchConfig(source=("demo/encyclopedia",)),
                    "qa": QAConfig(
                        model="demo/models/reader",
                        reader="fid",
                        passages=1,
                        max_passage_tokens=128,
                        device="cpu",
                        dtype="float32",
                    ),
                    "mt": MTConfig(model="demo/models/translator", device="cpu", dtype="float32"),
                }
            ),
            ray=RayConfig(actors=2, gpus_per_actor=0, cpus_per_actor=1),
        ),
        # WikiSearch and QA know the same facts: after a QA call, a snippet teaches nothing.
        MergeConfig(one_call_per_position=True),
        FinetuneConfig(
            sequence_length=256,
            batch_size=16,
            micro_batch_size=8,
            learning_rate=5e-4,
            max_steps=200,
            evaluate_every=100,
            held_out=32,
            # 32 texts without calls are too few to tell the perplexities of two checkpoints apart.
            select_by="loss",
            workers=2,
            use_gpu=False,
            zero_stage=2,
            gradient_checkpointing=False,
        ),
        # As many tokens as the sampled calls of MT that the model learned from.
        GenerateConfig(
            max_new_tokens=24, max_call_tokens=CallLengths.model_validate({"mt": mt.max_call_tokens})
        ),
        EvaluateConfig(
            benchmarks=tuple(Path(f"demo/questions/{name}.jsonl") for name in benchmarks),
            perplexity=("demo/held_out",),
            # Of the questions without one: a model that calls Calendar there gets the same answer every day.
            generation=GenerateConfig(date="2028-01-01"),
        ),
    )


def single_gpu() -> Recipe:
    """GPT-2 large on one GPU, with the three tools that need no model."""
    # A small model begins most draws with another tool's name or none (docs/decisions/0030-given-name.md).
    method = MethodConfig(tools=("WikiSearch", "Calculator", "Calendar"))
    for tool in method.tools:
        method = method.with_section(tool, method.of(tool).model_copy(update={"given_name": True}))
    return _recipe(
        "single_gpu",
        AnnotateConfig(
            # GPT-2's 1,024 tokens must hold prompt, text twice and call.
            corpus=CorpusConfig(max_tokens=256),
            model=ModelConfig(path="openai-community/gpt2-large"),
            method=method,
        ),
        MergeConfig(),
        FinetuneConfig(workers=1, zero_stage=1),
        GenerateConfig(tools_off=("QA", "MT")),
        EvaluateConfig(),
    )


def paper() -> Recipe:
    """GPT-J 6B with all five tools on eight GPUs of 40 GB: ZeRO-3, BF16 (Appendix B)."""
    annotate = AnnotateConfig(ray=RayConfig(actors=8))
    return _recipe("paper", annotate, MergeConfig(), FinetuneConfig(), GenerateConfig(), EvaluateConfig())


RECIPES: dict[RecipeName, Callable[[], Recipe]] = {"demo": demo, "single_gpu": single_gpu, "paper": paper}


def _recipe(
    name: RecipeName,
    annotate: AnnotateConfig,
    merge: MergeConfig,
    finetune: FinetuneConfig,
    generate: GenerateConfig,
    evaluate: EvaluateConfig,
) -> Recipe:
    """The steps below runs/NAME. Model and tools are those of `annotate`; after fine-tuning, dated tools
    answer for today."""
    generate = generate.model_copy(
        update={
            # What fits a forward of annotate says nothing of decoding, whose forwards have one token a row.
            "model": annotate.model.model_copy(update={"max_batch_tokens": None}),
            "tools": annotate.tools.at_inference(),
        }
    )
    finetune = finetune.model_copy(update={"model": annotate.model})
    recipe = Recipe(annotate=annotate, merge=merge, finetune=finetune, generate=generate, evaluate=evaluate)
    return linked(written_below(recipe, RUNS / name))


def written_below(recipe: Recipe, folder: Path) -> Recipe:
    """The same with the outputs of all steps, and what the tools write, in `folder`."""
    annotate, generate = recipe.annotate, recipe.generate

    def below(tools: ToolsConfig) -> ToolsConfig:
        return tools.with_sections(lambda settings: settings.writing_below(folder))

    def output(step: C, name: str) -> C:
        return step.model_copy(update={"output": folder / name})

    steps = {
        "annotate": output(annotate, "annotations").model_copy(update={"tools": below(annotate.tools)}),
        "merge": output(recipe.merge, "augmented"),
        "finetune": output(recipe.finetune, "model"),
        "generate": generate.model_copy(update={"tools": below(generate.tools)}),
        "evaluate": output(recipe.evaluate, "evaluation.json"),
    }
    return recipe.model_copy(update=steps)


def linked(recipe: Recipe, change: Callable[[str, Any], Any] = lambda name, step: step) -> Recipe:
    """The same with each step reading what the step before it writes; `change` is made to each step, by its
    name, before the next one follows it."""
    annotate = change("annotate", recipe.annotate)
    merge = change("merge", recipe.merge.model_copy(update={"annotations": (annotate.output,)}))
    finetune = change("finetune", recipe.finetune.model_copy(update={"data": merge.output}))
    model = recipe.generate.model.model_copy(update={"path": str(finetune.output)})
    generate = change("generate", recipe.generate.model_copy(update={"model": model}))
    date = generate.date or recipe.evaluate.generation.date  # a recipe may fix that of its questions
    evaluated = recipe.evaluate.model_copy(update={"generation": generate.model_copy(update={"date": date})})
    evaluate = change("evaluate", evaluated)
    steps = {
        "annotate": annotate,
        "merge": merge,
        "finetune": finetune,
        "generate": generate,
        "evaluate": evaluate,
    }
    return recipe.model_copy(update=steps)


def rounds_of(recipe: Recipe) -> list[Recipe]:
    """The steps of each round; those of the first are the recipe's own.

    A later round has its outputs in round-N/. It annotates with the model of the round before, merges the
    annotations of all rounds so far, and fine-tunes the base model. Its `generate` and `evaluate` use the
    model that comes out.
    """
    rounds = [recipe]
    while len(rounds) < recipe.rounds:
        rounds.append(_next_round(recipe, rounds))
    return rounds


def _next_round(recipe: Recipe, earlier: list[Recipe]) -> Recipe:
    folder = recipe.evaluate.output.parent / f"round-{len(earlier) + 1}"
    method = recipe.annotate.method
    prompts = method.use_prompts and recipe.round_prompts

    def changed(step: C, **values: object) -> C:
        return step.model_copy(update=values)

    def with_path(model: ModelConfig, output: Path) -> ModelConfig:
        return model.model_copy(update={"path": str(output)})

    annotate = changed(
        recipe.annotate,
        model=with_path(recipe.annotate.model, earlier[-1].finetune.output),
        method=method.model_copy(update={"use_prompts": prompts}),
        output=folder / recipe.annotate.output.name,
    )
    merge = changed(
        recipe.merge,
        annotations=(*(one.annotate.output for one in earlier), annotate.output),
        same_texts="unite",
        output=folder / recipe.merge.output.name,
    )
    finetune = changed(recipe.finetune, data=merge.output, output=folder / recipe.finetune.output.name)
    generate = changed(recipe.generate, model=with_path(recipe.generate.model, finetune.output))
    evaluated = recipe.evaluate.generation
    evaluate = changed(
        recipe.evaluate, generation=changed(evaluated, model=with_path(evaluated.model, finetune.output))
    )
    return changed(
        recipe, annotate=annotate, merge=merge, finetune=finetune, generate=generate, evaluate=evaluate
    )
