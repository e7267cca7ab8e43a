"""The commands: the types of their arguments, their part of a recipe, the step they run.

In: typed arguments. Out: the step's files, and a summary on standard output. A step is imported
when its command runs, so that `--help` needs neither torch nor Ray. Parsing, error messages and
exit codes are in main.py; the steps do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import tyro

from pipeline.base.analysis_config import TableConfig, ThresholdsConfig
from pipeline.base.config import (
    AnnotateConfig,
    ExportConfig,
    FinetuneConfig,
    MergeConfig,
    PlanConfig,
    ScoreConfig,
    TryConfig,
)
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli.prompts import separate_prompts
from pipeline.cli.recipes import Recipe, RecipeName
from tools_service.base.settings import FilePath, Frozen, Text

C = TypeVar("C", bound=Frozen)
DEFAULT_RECIPE: RecipeName = "demo"


@dataclass(frozen=True, kw_only=True)
class Arguments(Generic[C]):
    """Arguments of every command."""

    recipe: RecipeName = DEFAULT_RECIPE
    """The values to start from; the defaults shown here are those of this recipe."""
    config: Annotated[C, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class ToolsArguments(Arguments[C]):
    tools_file: FilePath | None = None
    """TOML file for the tools (cluster/tools.toml): over the recipe, under options."""


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(Arguments[FinetuneConfig]):
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Remove an earlier run in the output folder and start over."""


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(Arguments[ScoreConfig]):
    files: tyro.conf.Positional[tuple[Text, ...]] = ()
    """Files, folders, globs or URIs of JSON lines; the same as --files."""


@dataclass(frozen=True, kw_only=True)
class TryArguments(ToolsArguments[TryConfig]):
    given_name: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw after <API> and the tool's name instead of after <API>, as the field of the tool's section."""
    all_draws: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show every position and every distinct draw."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object per text, and one with the summary."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments[ExportConfig]):
    folder: tyro.conf.Positional[FilePath | None] = None
    """Folder that merge wrote; the same as --data."""


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(ToolsArguments[GenerateConfig]):
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to continue. If there are none: one per line from --file or standard input; on a terminal,
    typed one by one."""
    file: FilePath | None = None
    """File with one prompt per line."""
    interactive: tyro.conf.FlagCreatePairsOff[bool] = False
    """Type prompts one by one, with line editing and history, as without prompts on a terminal."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object per prompt: text with calls, calls, failed calls, tokens (docs/generate.md)."""
    trace: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what became of every call that was begun, on standard error or in the JSON objects."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ToolsArguments[EvaluateConfig]):
    label: str | None = None
    """Name of the model in the result file, models.LABEL; "model" if it is not given."""
    models: tuple[Text, ...] = ()
    """Several models, as LABEL=PATH in place of --label and --model; settings of one of them follow after
    commas, as in LABEL=PATH,disabled or LABEL=PATH,k=1."""


@dataclass(frozen=True, kw_only=True)
class SweepArguments(ToolsArguments[EvaluateConfig]):
    k: tuple[int, ...] = (0, 1, 3, 10)
    """The values of k, one evaluation each (section 5, Table 9)."""
    disabled: tyro.conf.FlagCreatePairsOff[bool] = False
    """Evaluate with calls disabled too."""
    label: Text | None = None
    """Put before the labels k0, k1, … in the result file: LABEL-k0."""


@dataclass(frozen=True, kw_only=True)
class ScalingArguments(ToolsArguments[EvaluateConfig]):
    models: tuple[Text, ...] = ()
    """The models, as LABEL=PATH; evaluated with calls and with calls disabled. LABEL=PATH,disabled is a
    baseline: disabled only."""


@dataclass(frozen=True, kw_only=True)
class TableArguments(Arguments[TableConfig]):
    files: tyro.conf.Positional[tuple[FilePath, ...]] = ()
    """Files that evaluate, sweep or scaling wrote; the same as --evaluations."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments(ToolsArguments[Recipe]):
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run finished steps again."""


def annotate(arguments: ToolsArguments[AnnotateConfig]) -> None:
    """Steps 1-4: select texts, sample calls, execute them, score them."""
    from pipeline.annotation.run import annotate
    from pipeline.report import losses

    manifest = annotate(arguments.config)
    if (counts := manifest.counts) is not None:
        kept = sum(tool.kept for tool in counts.tools.values())
        print(f"{counts.texts} texts, {counts.calls} scored calls, {kept} of them at tau_f or above")
    _print_losses(losses.annotation_losses(manifest))
    print(arguments.config.output)


def plan(arguments: ToolsArguments[PlanConfig]) -> None:
    """Estimate what annotating takes: work, time, cost, tools, disk. Runs no model."""
    from pipeline.planning.estimate import plan
    from pipeline.planning.render import render_plan
    from pipeline.report import losses
    from pipeline.report.tables import console

    estimate = plan(arguments.config)
    estimate.write(arguments.config.output)
    console().print(render_plan(estimate), highlight=False)
    _print_losses(losses.plan_losses(estimate))
    print(arguments.config.output)


def merge(arguments: Arguments[MergeConfig]) -> None:
    """Step 5: keep calls by threshold, cap per tool, insert them: C*."""
    from pipeline.augmentation.merge import merge
    from pipeline.report import losses

    manifest = merge(arguments.config)
    for tool, examples in manifest.tools.items():
        print(f"{tool}: {examples.calls} calls in {examples.examples} texts (tau_f = {examples.tau_f})")
    print(f"{manifest.texts} texts with {manifest.calls} calls")
    _print_losses(losses.merge_losses(manifest))
    print(arguments.config.output)


def export(arguments: ExportArguments) -> None:
    """C* in the formats of other trainers: text, chat, ShareGPT."""
    from pipeline.exporting.run import export

    config = arguments.config
    if arguments.folder is not None:
        config = config.model_copy(update={"data": arguments.folder})
    manifest = export(config)
    print(f"{manifest.texts} texts with {sum(manifest.tools.values())} calls, as {manifest.format}")
    if config.push_to_hub is not None:
        print(f"uploaded to the data set {config.push_to_hub} ({'public' if config.public else 'private'})")
    print(config.output)


def finetune(arguments: FinetuneArguments) -> None:
    """Step 6: language modelling on C*, with Ray Train and DeepSpeed."""
    from pipeline.finetuning.run import finetune
    from pipeline.report import losses

    manifest = finetune(arguments.config, force=arguments.force)
    best = manifest.best
    print(f"best after {best.step} steps: perplexity {best.perplexity:.3f} on held-out texts of C*")
    _print_losses(losses.finetune_losses(manifest))
    print(arguments.config.output)


def score(arguments: ScoreArguments) -> None:
    """The filter by itself: what insertions that others made are worth."""
    from pipeline.report import losses
    from pipeline.scoring.run import score

    config = arguments.config
    if arguments.files:
        config = config.model_copy(update={"files": arguments.files})
    manifest = score(config)
    print(f"{manifest.scored} of {manifest.lines} insertions scored, {manifest.positive} of them with a gain")
    if manifest.median_gain is not None:
        print(f"median gain {manifest.median_gain} nats")
    _print_losses(losses.score_losses(manifest))
    print(config.output)


def try_tool(arguments: TryArguments) -> None:
    """Steps 1-4 on a few texts with one tool: what each stage does, and why."""
    from pipeline.cli.trying import try_tool

    config = arguments.config
    if arguments.given_name:
        config = config.model_copy(update={"given_name": True})
    try_tool(config, all_draws=arguments.all_draws, as_json=arguments.json)


def generate(arguments: GenerateArguments) -> None:
    """Step 7: continue prompts, calling tools on the way."""
    from pipeline.cli.generating import Output, generate

    generate(
        arguments.config,
        arguments.recipe,
        prompts=arguments.prompts,
        file=arguments.file,
        output=Output(json=arguments.json, trace=arguments.trace),
        interactive=arguments.interactive,
    )


def serve(arguments: ToolsArguments[ServeConfig]) -> None:
    """The model and its tools behind OpenAI's interface, with a page to try it."""
    from pipeline.serving.run import serve_model

    serve_model(arguments.config)


def evaluate(arguments: EvaluateArguments) -> None:
    """Step 8: accuracy on question files and the paper's benchmarks, and perplexity without calls."""
    from pipeline.cli.evaluating import configs_of, evaluate_models

    evaluate_models(configs_of(arguments.config, arguments.label, arguments.models))


def harness(arguments: ToolsArguments[HarnessConfig]) -> None:
    """Tasks of lm-evaluation-harness, with calls on or off."""
    from pipeline.cli.harness import harness
    from pipeline.report import losses

    run = harness(arguments.config)
    _print_losses(losses.generation_losses(run.generations))
    print(arguments.config.output)


def sweep(arguments: SweepArguments) -> None:
    """Evaluate a model with several k, and count its calls."""
    from pipeline.cli.analysing import sweep

    sweep(arguments.config, arguments.k, disabled=arguments.disabled, label=arguments.label)


def scaling(arguments: ScalingArguments) -> None:
    """Evaluate models of several sizes with and without calls."""
    from pipeline.cli.analysing import scaling

    scaling(arguments.config, arguments.models)


def thresholds(arguments: Arguments[ThresholdsConfig]) -> None:
    """Count the examples in C* by tool for several tau_f. Runs no model."""
    from pipeline.cli.analysing import thresholds

    thresholds(arguments.config)


def table(arguments: TableArguments) -> None:
    """Results in the paper's tables, beside its own figures: Markdown, LaTeX, CSV."""
    from pipeline.cli.analysing import table

    config = arguments.config
    if arguments.files:
        config = config.model_copy(update={"evaluations": arguments.files})
    table(config)


def demo(arguments: DemoArguments) -> None:
    """All steps in order, with the baselines, and the results in one table."""
    from pipeline.cli.demo import demo

    demo(arguments.config, force=arguments.force)


def _print_losses(sentences: Iterable[str]) -> None:
    """What the command lost, one line each."""
    for sentence in sentences:
        print(f"! {sentence}")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: function with its summary as docstring, type of arguments, part of a recipe, help texts."""

    run: Callable[[Any], None]
    arguments: type[Arguments[Any]]
    config: Callable[[Recipe], Frozen]
    short: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Sequence[str], Any], Sequence[str]] = lambda argv, config: argv
    """Rearranges the options, given the configuration that they change."""
    examples: tuple[str, ...]


def _evaluation_beside(recipe: Recipe, name: str) -> EvaluateConfig:
    """The recipe's evaluation with another output in the same folder."""
    return recipe.evaluate.model_copy(update={"output": recipe.evaluate.output.with_name(name)})


_MODEL = {"--model": "--model.path"}
_CORPUS = {"--corpus": "--corpus.paths", "--slice": "--corpus.slice"}
_SHORT = {**_CORPUS, **_MODEL, "--tools": "--method.tools"}

COMMANDS: dict[str, Command] = {
    "plan": Command(
        run=plan,
        arguments=ToolsArguments[PlanConfig],
        config=lambda recipe: PlanConfig(
            **dict(recipe.annotate) | {"output": recipe.annotate.output.parent / "plan.json"}
        ),
        short=_SHORT,
        examples=(
            "--recipe demo --like runs/demo/annotations",
            "--recipe paper --corpus s3://b/ccnet --hardware A100 --price-per-hour 2.5 --deadline-hours 48",
        ),
    ),
    "annotate": Command(
        run=annotate,
        arguments=ToolsArguments[AnnotateConfig],
        config=lambda recipe: recipe.annotate,
        short=_SHORT,
        examples=(
            "--recipe demo",
            "--recipe single_gpu --corpus pages/ 'more/*.json.gz' --tools.wikisearch.source wiki/",
            "--recipe paper --corpus s3://bucket/ccnet --model /models/gpt-j --method.calculator.k 5",
            "--recipe paper --corpus /shared/corpus --slice 17/4096 --output /shared/runs/slices/17",
        ),
    ),
    "try": Command(
        run=try_tool,
        arguments=TryArguments,
        config=lambda recipe: TryConfig(
            corpus=recipe.annotate.corpus,
            model=recipe.annotate.model,
            method=recipe.annotate.method,
            tools=recipe.annotate.tools,
            threads=max(1, int(recipe.annotate.ray.cpus_per_actor)),
        ),
        short={**_CORPUS, **_MODEL, "--seed": "--method.seed"},
        examples=(
            "--recipe demo --tool Calculator --texts 5",
            "--recipe demo --tool Calculator --text 'The farm had 48 hens and bought 67. Now it has 115.'",
            "--tool MT --tools-file demo/tools.toml --corpus mine.jsonl --model /models/gpt-j --tau-s 0.01",
        ),
    ),
    "merge": Command(
        run=merge,
        arguments=Arguments[MergeConfig],
        config=lambda recipe: recipe.merge,
        examples=(
            "--recipe demo",
            "--annotations runs/a runs/b --output runs/augmented --tau-f Calculator 1.0",
            "--annotations 'runs/slices/*' --output runs/augmented",
        ),
    ),
    "export": Command(
        run=export,
        arguments=ExportArguments,
        config=lambda recipe: ExportConfig(
            data=recipe.merge.output, output=recipe.merge.output.parent / "export"
        ),
        examples=(
            "runs/augmented --format chat --output runs/chat",
            "--recipe demo --format text --mask-results",
            "runs/augmented --format sharegpt --file-type parquet --push-to-hub me/my-texts",
        ),
    ),
    "finetune": Command(
        run=finetune,
        arguments=FinetuneArguments,
        config=lambda recipe: recipe.finetune,
        short=_MODEL,
        examples=("--recipe demo", "--recipe demo --column plain --output runs/demo/model-plain"),
    ),
    "score": Command(
        run=score,
        arguments=ScoreArguments,
        config=lambda recipe: ScoreConfig(
            model=recipe.annotate.model,
            ray=recipe.annotate.ray,
            output=recipe.annotate.output.parent / "scores",
        ),
        short=_MODEL,
        examples=(
            "--recipe demo traces.jsonl",
            "traces.jsonl --model /models/gpt-j --place position --tokens None --per-token",
        ),
    ),
    "generate": Command(
        run=generate,
        arguments=GenerateArguments,
        config=lambda recipe: recipe.generate,
        short=_MODEL,
        prepare=separate_prompts,
        examples=(
            "--recipe demo",
            "--recipe demo 'A prompt to continue' --trace",
            "--model runs/model --file prompts.txt --json",
            "--recipe demo --tools-off QA MT --stop '\\n' 'One line with fewer tools'",
            "--recipe demo --disabled 'The same without calls'",
        ),
    ),
    "serve": Command(
        run=serve,
        arguments=ToolsArguments[ServeConfig],
        config=lambda recipe: ServeConfig(
            generation=recipe.generate,
            gpus_per_replica=recipe.annotate.ray.gpus_per_actor,
            cpus_per_replica=recipe.annotate.ray.cpus_per_actor,
        ),
        short={
            "--model": "--generation.model.path",
            "--host": "--http.host",
            "--port": "--http.port",
            "--k": "--generation.k",
            "--tools-off": "--generation.tools-off",
        },
        examples=(
            "--recipe demo",
            "--recipe demo --model runs/demo/model --port 8001 --replicas 2",
            "--recipe paper --host 0.0.0.0 --http.token-file token --chat-template plain",
        ),
    ),
    "evaluate": Command(
        run=evaluate,
        arguments=EvaluateArguments,
        config=lambda recipe: recipe.evaluate,
        short={"--model": "--generation.model.path"},
        examples=(
            "--recipe demo --label toolformer",
            "--model runs/model --benchmarks questions/*.jsonl svamp=SVAMP.json",
            "--models base=/models/gpt-j on=runs/model off=runs/model,disabled --compare-with off",
        ),
    ),
    "harness": Command(
        run=harness,
        arguments=ToolsArguments[HarnessConfig],
        config=lambda recipe: HarnessConfig(
            generation=recipe.generate.model_copy(update={"max_new_tokens": 256}),
            output=recipe.evaluate.output.parent / "harness.json",
        ),
        short={"--model": "--generation.model.path"},
        examples=(
            "--recipe demo --tasks wikitext --no-calls",
            "--model runs/model --tasks gsm8k --limit 100",
            "--recipe demo --include-path my_tasks/ --tasks my_task",
        ),
    ),
    "sweep": Command(
        run=sweep,
        arguments=SweepArguments,
        config=lambda recipe: _evaluation_beside(recipe, "sweep.json"),
        short={"--model": "--generation.model.path"},
        examples=(
            "--recipe demo --disabled",
            "--model runs/model --k 0 1 3 10 --benchmarks lama_trex=LAMA/ webquestions=test.json",
        ),
    ),
    "scaling": Command(
        run=scaling,
        arguments=ScalingArguments,
        config=lambda recipe: _evaluation_beside(recipe, "scaling.json"),
        examples=(
            "--models small=runs/small/model large=runs/large/model gpt2=openai-community/gpt2,disabled",
        ),
    ),
    "thresholds": Command(
        run=thresholds,
        arguments=Arguments[ThresholdsConfig],
        config=lambda recipe: ThresholdsConfig(annotations=(recipe.annotate.output,)),
        examples=("--recipe demo", "--annotations 'runs/slices/*' --tau-f 0.5 1 1.5 2 --max-examples 25000"),
    ),
    "table": Command(
        run=table,
        arguments=TableArguments,
        config=lambda recipe: TableConfig(evaluations=(recipe.evaluate.output,)),
        examples=(
            "runs/demo/evaluation.json --intervals",
            "runs/a.json runs/b.json --rows gptj base --layout lama qa --format latex",
            "runs/scaling.json --layout scaling --format csv",
        ),
    ),
    "demo": Command(
        run=demo,
        arguments=DemoArguments,
        config=lambda recipe: recipe,
        examples=("", "--force", "--annotate.method.calculator.k 5"),
    ),
}
