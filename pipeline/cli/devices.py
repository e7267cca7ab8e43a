"""Refuses a device `cuda` without a GPU, and a cluster that is not there, before a command starts.

In: the configuration of a command. On Ray, a process has the GPUs that are reserved for it, and with none it
would run on the CPU; in this process, and on a local Ray, the machine must have a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.config import AnnotateConfig, PlanConfig, ScoreConfig, TryConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli.recipes import Recipe
from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import Frozen
from tools_service.config import ToolsConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs: the field with its device, and the GPUs that a field reserves for it on Ray.

    `gpus` is None in this process. `address` is that of the cluster; None: as RAY_ADDRESS says.
    """

    field: str
    device: str
    gpus: float | None = None
    gpus_field: str = ""
    address: str | None = None


def require_devices(config: Frozen) -> None:
    """Raise ConfigurationError for the first device `cuda` that has no GPU."""
    for place in _placements(config):
        if place.device != "cuda":
            continue
        if place.gpus == 0:
            raise ConfigurationError(
                f"{place.field} cuda: {place.gpus_field} reserves no GPU for it; change that, or set "
                f"{place.field} to auto"
            )
        if (place.gpus is None or _is_local(place.address)) and not _has_gpu():
            raise ConfigurationError(
                f"{place.field} cuda: this machine has no GPU that torch can use; auto or cpu run on the CPU "
                "(`doctor` looks for GPUs)"
            )


def look_for_cluster(config: Frozen) -> None:
    """Look for the cluster that a command names, before it imports for seconds what it needs there.

    A command that begins its output will join: RayAddressError if there is no Ray. One that finds
    results may need no Ray, only show them: then the look goes on beside the imports.
    """
    from tools_service.runtime.address import AUTO, LOCAL, chosen_address, look_early, require_cluster
    from tools_service.runtime.surroundings import pass_by_proxies, require_known_auth_mode

    on_ray = AnnotateConfig | ScoreConfig | FinetuneConfig | ServeConfig | EvaluateConfig | Recipe
    if not isinstance(config, on_ray) or isinstance(config, PlanConfig):
        return
    if isinstance(config, EvaluateConfig) and not _is_on_ray(config):
        return
    option = "address" if isinstance(config, ServeConfig) else "ray.address"
    named = getattr(getattr(config, "ray", config), "address", None)
    address, source = chosen_address(named, option)
    if address in (LOCAL, AUTO):
        return
    if _has_output(config):
        look_early(address)
    else:
        require_known_auth_mode()
        pass_by_proxies()
        require_cluster(address, source)


def _has_output(config: Any) -> bool:
    """Whether the output of a command, or of a recipe's first step, holds something or cannot be read."""
    output: Path | None = getattr(getattr(config, "annotate", config), "output", None)
    try:
        return output is not None and (output.is_file() or (output.is_dir() and any(output.iterdir())))
    except OSError:  # which the command itself explains
        return True


def _is_on_ray(config: EvaluateConfig) -> bool:
    from pipeline.evaluation.placement import runs_on_ray

    return runs_on_ray([config])


def _placements(config: Any) -> Iterator[Placement]:
    """Every model of a command; of commands that run none, nothing."""
    if isinstance(config, Recipe):
        for step in (config.annotate, config.finetune, config.evaluate):
            yield from _placements(step)
    elif isinstance(config, PlanConfig):
        return
    elif isinstance(config, FinetuneConfig):
        yield Placement("model.device", config.model.device, int(config.use_gpu), "use_gpu")
    elif isinstance(config, AnnotateConfig | ScoreConfig):
        gpus, address = config.ray.gpus_per_actor, config.ray.address
        yield Placement("model.device", config.model.device, gpus, "ray.gpus_per_actor", address)
        if isinstance(config, AnnotateConfig):
            yield from _tools("tools", config.tools, config.method.tools, on_ray=True, address=address)
    elif isinstance(config, TryConfig):
        yield Placement("model.device", config.model.device)
        tools = [config.tool] if config.tool in config.tools.specs else []
        yield from _tools("tools", config.tools, tools, on_ray=False)
    elif isinstance(config, ServeConfig):
        device, gpus = config.generation.model.device, config.gpus_per_replica
        field, address = "generation.model.device", config.address
        yield Placement(field, device, gpus, "gpus_per_replica", address)
        yield from _generation_tools("generation.tools", config.generation, on_ray=True, address=address)
    elif isinstance(config, EvaluateConfig):
        ray, model, on_ray = config.ray, config.generation.model, _is_on_ray(config)
        gpus_on_ray, address = (ray.gpus_per_actor, ray.address) if on_ray else (None, None)
        yield Placement("generation.model.device", model.device, gpus_on_ray, "ray.gpus_per_actor", address)
        yield from _generation_tools("generation.tools", config.generation, on_ray=on_ray, address=address)
    elif isinstance(config, GenerateConfig | HarnessConfig):
        generation = config if isinstance(config, GenerateConfig) else config.generation
        prefix = "" if isinstance(config, GenerateConfig) else "generation."
        yield Placement(f"{prefix}model.device", generation.model.device)
        yield from _generation_tools(f"{prefix}tools", generation, on_ray=False)


def _generation_tools(field: str, config: GenerateConfig, **where: Any) -> Iterator[Placement]:
    used = (
        () if config.calls_disabled else [tool for tool in config.tools.specs if tool not in config.tools_off]
    )
    return _tools(field, config.tools, used, **where)


def _tools(
    field: str, config: ToolsConfig, tools: Iterable[str], *, on_ray: bool, address: str | None = None
) -> Iterator[Placement]:
    for tool in tools:
        settings = config.of(tool)
        section = f"{field}.{config.spec(tool).section}"
        gpus = settings.deployment.gpus if on_ray else None
        for name, device in _devices(settings):
            yield Placement(f"{section}.{name}", device, gpus, f"{section}.deployment.gpus", address)


def _devices(settings: Frozen) -> Iterator[tuple[str, str]]:
    """Each field `device` within settings, by its dotted name."""
    for name, value in settings:
        if isinstance(value, Frozen):
            yield from ((f"{name}.{inner}", device) for inner, device in _devices(value))
        elif name == "device":
            yield name, str(value)


def _is_local(address: str | None) -> bool:
    """Whether Ray runs on this machine alone."""
    from tools_service.runtime.address import LOCAL, chosen_address

    return chosen_address(address, "ray.address")[0] == LOCAL


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
