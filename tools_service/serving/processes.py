"""The processes of tools on a cluster, as a resource request states them."""

from __future__ import annotations

from collections.abc import Iterable

from tools_service.config import ToolsConfig
from tools_service.runtime.resources import ProcessRequest


def tool_processes(config: ToolsConfig, tools: Iterable[str], field: str) -> tuple[ProcessRequest, ...]:
    """The replicas that must run before a tool answers; `field` comes before their options: "tools."."""
    requests = []
    for tool in tools:
        deployment = config.of(tool).deployment
        option = f"--{field}{config.spec(tool).section}.deployment".replace("_", "-")
        requests.append(
            ProcessRequest(
                of=f"{tool} replica",
                count=deployment.min_replicas,
                cpus=deployment.cpus,
                gpus=deployment.gpus,
                fewer_cpus=f"lower {option}.cpus",
                fewer_gpus=f"lower {option}.gpus",
                fewer=f"lower {option}.min-replicas",
            )
        )
    return tuple(requests)
