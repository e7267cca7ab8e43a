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
from typing import Literal

from pipeline.base.config import (
    AnnotateConfig,
    CorpusConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    MergeConfig,
    MethodConfig,
    ModelConfig,
    RayConfig,
    ToolMethod,
)
from tools_service.base.settings import Frozen
from tools_service.config import CalendarConfig, MTConfig, QAConfig, ToolsConfig, WikiSearchConfig
from tools_service.tools.contract import ToolName

RecipeName = Literal["demo", "single_gpu", "paper"]


class Recipe(Frozen):
    """The whole method: one configuration per step."""

    annotate: AnnotateConfig
    """Steps 1-4."""
    merge: MergeConfig
    """Step 5."""
    finetune: FinetuneConfig
    """Step 6."""
    generate: GenerateConfig
    """Step 7."""
    evaluate: EvaluateConfig
    """Step 8."""


def demo() -> Recipe:
    """The embedded world (demo/): small models on two CPU cores, in minutes and without network."""
    runs = Path("runs/demo")
    model = ModelConfig(path="demo/models/annotator", dtype="float32", device="cpu", max_batch_tokens=4_096)
    tools = ToolsConfig(
        wikisearch=WikiSearchConfig(source=("demo/encyclopedia",), index=runs / "index"),
        qa=QAConfig(
            model="demo/models/reader",
            reader="fid",
            passages=1,
            max_passage_tokens=128,
            device="cpu",
            dtype="float32",
        ),
        mt=MTConfig(model="demo/models/translator", device="cpu", dtype="float32"),
    )
    generate = _generate(model, tools, runs, max_new_tokens=24)
    # The paper's k = 20 and m = 10 take several times the work and find hardly any more calls here.
    calculator = mt = ToolMethod(tau_s=0.0, k=5, m=5, tau_f=0.5)
    return Recipe(
        annotate=AnnotateConfig(
            # Pretraining used up to 480 tokens, which must hold prompt, text twice and call.
            corpus=CorpusConfig(paths=("demo/pages",), max_tokens=112),
            model=model,
            method=MethodConfig(prompts=Path("demo/prompts"), calculator=calculator, mt=mt),
            tools=tools,
            ray=RayConfig(actors=2, gpus_per_actor=0, cpus_per_actor=1),
            output=runs / "annotations",
        ),
        # WikiSearch and QA know the same facts: after a QA call, a snippet teaches nothing.
        merge=_merge(runs).model_copy(update={"one_call_per_position": True}),
        finetune=FinetuneConfig(
            model=model,
            data=runs / "augmented",
            output=runs / "model",
            sequence_length=256,
            batch_size=16,
            micro_batch_size=8,
            learning_rate=5e-4,
            max_steps=200,
            evaluate_every=100,
            held_out=32,
            workers=2,
            use_gpu=False,
            zero_stage=2,
            gradient_checkpointing=False,
        ),
        generate=generate,
        evaluate=EvaluateConfig(
            generation=generate,
            benchmarks=tuple(
                Path(f"demo/questions/{name}.jsonl")
                for name in ("calculator", "wikisearch", "qa", "calendar", "mt", "plain")
            ),
            perplexity=("demo/held_out",),
            output=runs / "evaluation.json",
        ),
    )


def single_gpu() -> Recipe:
    """GPT-2 large on one GPU, with the three tools that need no model."""
    runs = Path("runs/single_gpu")
    model = ModelConfig(path="openai-community/gpt2-large")
    tools = ToolsConfig(wikisearch=WikiSearchConfig(index=runs / "index"))
    generate = _generate(model, tools, runs, tools_off=("QA", "MT"))
    return Recipe(
        annotate=AnnotateConfig(
            # GPT-2's 1,024 tokens must hold prompt, text twice and call.
            corpus=CorpusConfig(max_tokens=256),
            model=model,
            method=MethodConfig(tools=("WikiSearch", "Calculator", "Calendar")),
            tools=tools,
            output=runs / "annotations",
        ),
        merge=_merge(runs),
        finetune=FinetuneConfig(
            model=model, data=runs / "augmented", output=runs / "model", workers=1, zero_stage=1
        ),
        generate=generate,
        evaluate=EvaluateConfig(generation=generate, output=runs / "evaluation.json"),
    )


def paper() -> Recipe:
    """GPT-J 6B with all five tools on eight GPUs of 40 GB: ZeRO-3, BF16 (Appendix B)."""
    runs = Path("runs/paper")
    model = ModelConfig()
    tools = ToolsConfig(wikisearch=WikiSearchConfig(index=runs / "index"))
    generate = _generate(model, tools, runs)
    return Recipe(
        annotate=AnnotateConfig(
            model=model, tools=tools, ray=RayConfig(actors=8), output=runs / "annotations"
        ),
        merge=_merge(runs),
        finetune=FinetuneConfig(model=model, data=runs / "augmented", output=runs / "model"),
        generate=generate,
        evaluate=EvaluateConfig(generation=generate, output=runs / "evaluation.json"),
    )


RECIPES: dict[RecipeName, Callable[[], Recipe]] = {"demo": demo, "single_gpu": single_gpu, "paper": paper}


def _generate(
    model: ModelConfig,
    tools: ToolsConfig,
    runs: Path,
    *,
    tools_off: tuple[ToolName, ...] = (),
    max_new_tokens: int = 64,
) -> GenerateConfig:
    """The fine-tuned model with the same tools; the calendar shows today."""
    return GenerateConfig(
        model=model.model_copy(update={"path": str(runs / "model")}),
        tools=tools.model_copy(update={"calendar": CalendarConfig(today=True)}),
        tools_off=tools_off,
        max_new_tokens=max_new_tokens,
    )


def _merge(runs: Path) -> MergeConfig:
    return MergeConfig(annotations=(runs / "annotations",), output=runs / "augmented")
