"""What each command does: one function per command.

In: typed arguments. Out: the step's files, and a summary on standard output. The docstring is the
command's summary. A step is imported when its command runs, so that `--help` needs neither torch nor Ray.
Parsing, error messages and exit codes are in main.py; the steps do the work.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.analysis_config import ThresholdsConfig
from pipeline.base.config import AnnotateConfig, MergeConfig, PlanConfig
from pipeline.base.finetune_config import MergeLoraConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli.arguments import (
    Arguments,
    DemoArguments,
    EvaluateArguments,
    ExportArguments,
    FetchArguments,
    FinetuneArguments,
    GenerateArguments,
    ReportArguments,
    ReportedArguments,
    ReportedToolsArguments,
    ScalingArguments,
    ScoreArguments,
    StatusArguments,
    SweepArguments,
    TableArguments,
    ToolsArguments,
    TryArguments,
)
from pipeline.cli.reporting import report_at_end


def fetch(arguments: FetchArguments) -> None:
    """Stage the models of a run: download, convert pickled weights, check. Before a cluster is rented."""
    from pipeline.cli.fetching import fetch_models

    fetch_models(arguments.configuration)


def annotate(arguments: ReportedToolsArguments[AnnotateConfig]) -> None:
    """Steps 1-4: select texts, sample calls, execute them, score them."""
    from pipeline.annotation.run import annotate
    from pipeline.report import losses

    manifest = annotate(arguments.config)
    if (counts := manifest.counts) is not None:
        kept = sum(tool.kept for tool in counts.tools.values())
        print(f"{counts.texts} texts, {counts.calls} scored calls, {kept} of them at tau_f or above")
    _print_losses(losses.annotation_losses(manifest))
    report_at_end(arguments.config.output, wanted=arguments.report)
    print(arguments.config.output)


def plan(arguments: ToolsArguments[PlanConfig]) -> None:
    """Estimate what annotating takes: work, time, cost, tools, disk. Runs no model."""
    from pipeline.fetching.wanted import unstaged
    from pipeline.planning.estimate import plan
    from pipeline.planning.render import render_plan
    from pipeline.report import losses
    from pipeline.report.tables import console

    estimate = plan(arguments.config)
    estimate.write(arguments.config.output)
    console().print(render_plan(estimate), highlight=False)
    _print_losses(losses.plan_losses(estimate))
    config = arguments.config
    if missing := unstaged(config.model, config.tools, config.method.tools):
        print(f"! Not staged: {', '.join(missing)}. `fetch` downloads, converts and checks them before a run")
    print(arguments.config.output)


def merge(arguments: ReportedArguments[MergeConfig]) -> None:
    """Step 5: keep calls by threshold, cap per tool, insert them: C*."""
    from pipeline.augmentation.merge import merge
    from pipeline.report import losses

    manifest = merge(arguments.config)
    for tool, examples in manifest.tools.items():
        print(f"{tool}: {examples.calls} calls in {examples.examples} texts (tau_f = {examples.tau_f})")
    plain = f", {manifest.plain_texts} of them without a call" if manifest.plain_texts else ""
    print(f"{manifest.texts} texts with {manifest.calls} calls{plain}")
    _print_losses(losses.merge_losses(manifest))
    report_at_end(arguments.config.output, wanted=arguments.report)
    print(arguments.config.output)


def export(arguments: ExportArguments) -> None:
    """C* in the formats of other trainers: text, chat, ShareGPT."""
    from pipeline.exporting.run import export

    config = arguments.configuration
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
    print(f"best after {best.step} steps: perplexity {best.perplexity:.3f} on held-out texts without calls")
    _print_losses(losses.finetune_losses(manifest))
    report_at_end(arguments.config.output, wanted=arguments.report)
    print(arguments.config.output)


def merge_lora(arguments: Arguments[MergeLoraConfig]) -> None:
    """A LoRA adapter and its base model as one model."""
    from pipeline.finetuning.merge_lora import merge_lora

    manifest = merge_lora(arguments.config)
    print(f"{manifest.adapter} merged into {manifest.base}")
    print(arguments.config.output)


def score(arguments: ScoreArguments) -> None:
    """The filter by itself: what insertions that others made are worth."""
    from pipeline.report import losses
    from pipeline.scoring.run import score

    config = arguments.configuration
    manifest = score(config)
    print(f"{manifest.scored} of {manifest.lines} insertions scored, {manifest.positive} of them with a gain")
    if manifest.median_gain is not None:
        print(f"median gain {manifest.median_gain} nats")
    _print_losses(losses.score_losses(manifest))
    print(config.output)


def try_tool(arguments: TryArguments) -> None:
    """Steps 1-4 on a few texts with one tool: what each stage does, and why."""
    from pipeline.cli.trying import try_tool

    try_tool(arguments.configuration, all_draws=arguments.all_draws, as_json=arguments.json)


def generate(arguments: GenerateArguments) -> None:
    """Step 7: continue prompts, calling tools on the way."""
    from pipeline.cli.generating.run import Output, generate

    generate(
        arguments.config,
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

    evaluate_models(
        configs_of(arguments.config, arguments.label, arguments.models), with_report=arguments.report
    )


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

    table(arguments.configuration)


def report(arguments: ReportArguments) -> None:
    """One HTML page on a run: what was kept, lost and learned. Reads the files of a folder."""
    from pipeline.cli.reporting import report

    report(arguments.configuration)


def status(arguments: StatusArguments) -> None:
    """How far a run is, also while it goes on: done, rate, time left, kept calls, failures."""
    from pipeline.cli.reporting import status

    status(arguments.configuration, as_json=arguments.json)


def demo(arguments: DemoArguments) -> None:
    """All steps in order, with the baselines, and the results in one table."""
    from pipeline.cli.demo import demo

    demo(arguments.config, arguments.recipe, force=arguments.force, with_report=arguments.report)


def _print_losses(sentences: Iterable[str]) -> None:
    """What the command lost, one line each."""
    for sentence in sentences:
        print(f"! {sentence}")
