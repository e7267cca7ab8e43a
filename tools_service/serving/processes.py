"""The processes of tools on a cluster, as a resource request states them."""

from __future__ import annotations

from collections.abc import Iterable

from tools_service.config import ToolsConfig
from tools_service.runtime.resources import ProcessRequest


def tool_processes(config: ToolsConfig, tools: Iterable[str], field: str) -> tuple[ProcessRequest, ...]:
    """The replicas that must run before a tool answers; `field` is the field of `config`."""
    requests = []
    for tool in tools:
        deployment = config.of(tool).deployment
        section = f"{field}.{config.spec(tool).section}.deployment"
        requests.append(
            ProcessRequest(
                of=f"{tool} replica",
                count=deployment.min_replicas,
                cpus=deployment.cpus,
                gpus=deployment.gpus,
                fewer_cpus=f"lower {section}.cpus",
                fewer_gpus=f"lower {section}.gpus",
                fewer=f"lower {section}.min_replicas",
            )
        )
    return tuple(requests)
