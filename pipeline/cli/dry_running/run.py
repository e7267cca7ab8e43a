"""The option `--dry-run`: collects what each kind of command would do, with the checks that it makes itself.

In: the arguments of a command. Out: lines on standard output; ConfigurationError, and so exit code 2, if
something is missing. Loads no weights, starts no Ray, writes nothing; `fetch` alone asks the hub.
"""

from __future__ import annotations

from typing import Any

from pipeline.base.analysis_config import ReportConfig, StatusConfig, TableConfig, ThresholdsConfig
from pipeline.base.config import AnnotateConfig, ExportConfig, MergeConfig, PlanConfig, ScoreConfig, TryConfig
from pipeline.base.fetch_config import FetchConfig
from pipeline.base.finetune_config import FinetuneConfig, MergeLoraConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli.arguments import Arguments
from pipeline.cli.demo_files import require_demo_files
from pipeline.cli.devices import require_devices
from pipeline.cli.dry_running.preview import Preview
from pipeline.cli.dry_running.steps import (
    preview_annotate,
    preview_corpus,
    preview_demo,
    preview_evaluate,
    preview_finetune,
    preview_generation,
    preview_merge,
    preview_report,
    preview_tools,
)
from pipeline.cli.evaluating import configs_of
from pipeline.cli.missing_inputs import require_inputs
from pipeline.cli.recipes import Recipe
from pipeline.storage.kinds import EXPORT, HARNESS, MERGED_MODEL, PLAN, SCORES


def dry_run(arguments: Arguments[Any], program: str) -> None:
    """Print what the command would do. Raises ConfigurationError if it could not."""
    if isinstance(arguments.configuration, FetchConfig):
        from pipeline.cli.fetching import print_plan

        print_plan(arguments.configuration)
        return
    preview = Preview()
    with preview.checking():
        require_demo_files(arguments, program)
    with preview.checking():
        require_inputs(arguments)
    with preview.checking():
        require_devices(arguments.config)
    if preview.problems:  # a missing input is not looked at again
        preview.runs.append(("nothing", "before this is mended"))
    else:
        _collect(preview, arguments)
    print(preview.text())
    preview.require_nothing_missing()


def _collect(preview: Preview, arguments: Arguments[Any]) -> None:
    config = arguments.configuration
    if isinstance(config, Recipe):
        preview_demo(preview, config, force=getattr(arguments, "force", False))
    elif isinstance(config, PlanConfig):
        preview_corpus(preview, config.corpus)
        preview.read_model(config.model.path)
        preview.write(config.output, PLAN)
    elif isinstance(config, AnnotateConfig):
        preview_annotate(preview, config)
    elif isinstance(config, MergeConfig):
        preview_merge(preview, config)
    elif isinstance(config, FinetuneConfig):
        preview_finetune(preview, config, force=getattr(arguments, "force", False))
    elif isinstance(config, EvaluateConfig):
        models = tuple(getattr(arguments, "models", ()))
        preview_evaluate(
            preview,
            configs_of(config, None, models)
            if models
            else {getattr(arguments, "label", None) or "model": config},
        )
    else:
        _collect_other(preview, config)


def _collect_other(preview: Preview, config: Any) -> None:
    if isinstance(config, GenerateConfig):
        preview_generation(preview, config, on_ray=False)
    elif isinstance(config, ServeConfig):
        preview_generation(preview, config.generation, on_ray=True)
        preview.runs.append(("serve", f"{config.replicas} replicas, {config.gpus_per_replica:g} GPUs each"))
        preview.runs.append(("address", f"{config.http.host}:{config.http.port}"))
    elif isinstance(config, HarnessConfig):
        preview_generation(preview, config.generation, on_ray=False)
        preview.runs.append(("tasks", ", ".join(config.tasks) or "none: name them with --tasks"))
        preview.write(config.output, HARNESS)
    elif isinstance(config, TryConfig):
        tools = [config.tool] if config.tool else []
        preview_corpus(preview, config.corpus)
        preview.read_model(config.model.path)
        preview_tools(preview, config.tools, tools, on_ray=False)
    elif isinstance(config, ScoreConfig):
        preview.read("files", config.files)
        preview.read_model(config.model.path)
        preview.runs.append(("score", f"{config.ray.actors} actors, {config.ray.gpus_per_actor:g} GPUs each"))
        preview.write(config.output, SCORES, "exists, would be resumed" if config.output.exists() else None)
    elif isinstance(config, ExportConfig):
        preview.read("data", [config.data])
        preview.runs.append(("export", f"as {config.format}"))
        preview.write(config.output, EXPORT)
        if config.push_to_hub:
            preview.writes.append((f"{config.push_to_hub} on the hub", "uploaded"))
    elif isinstance(config, MergeLoraConfig):
        preview.read_model(str(config.adapter), "adapter")
        preview.runs.append(("merge-lora", f"weights as {config.dtype}"))
        preview.write(config.output, MERGED_MODEL)
    elif isinstance(config, ThresholdsConfig):
        preview.read("annotations", config.annotations)
    elif isinstance(config, TableConfig):
        preview.read("evaluations", config.evaluations)
    elif isinstance(config, ReportConfig | StatusConfig):
        preview_report(preview, config)
