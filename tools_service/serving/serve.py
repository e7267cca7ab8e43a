"""`python -m tools_service serve`: the tools on Ray, for all jobs of a cluster.

In: names of tools, a ToolsConfig and a cluster's address. After a crash, a new start finds the
tools that still run and shares them. Ctrl-C and SIGTERM stop tools that no other job uses, and a
Ray that was started here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence

import ray

from tools_service.base.cpus import available_cpus
from tools_service.config import HttpConfig, ToolsConfig
from tools_service.runtime.address import LOCAL, chosen_address
from tools_service.runtime.connection import connect
from tools_service.runtime.resources import ResourceRequest, require_machine, require_resources
from tools_service.serving.client import ServeTools
from tools_service.serving.deployment import application_statuses, tools_on_ray
from tools_service.serving.http import bind_socket, create_app, create_server, read_token
from tools_service.serving.mcp import PATH, add_mcp_route, create_mcp_server, run_on_stdio
from tools_service.serving.processes import tool_processes


def serve(
    config: ToolsConfig,
    tools: Sequence[str],
    address: str | None,
    http: HttpConfig | None,
    mcp: bool = False,
) -> None:
    """Run `tools` until SIGINT or SIGTERM; with `http` also over HTTP.

    With `mcp` also as an MCP server: at /mcp with `http`, else on standard input and output until the input
    ends; messages then go to standard error.
    """
    say = functools.partial(print, file=sys.stderr) if mcp and not http else print
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address, source = chosen_address(address, "--address")
    request = ResourceRequest(processes=tool_processes(config, tools, "tools"))
    if address == LOCAL:
        require_machine(request)
    token = read_token(http) if http else None
    listener = bind_socket(http) if http else None
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.ExitStack() as at_end,
        sigterm_interrupts(),
        connect(address, source, cpus=max(available_cpus(), math.ceil(request.cpus))),
        _with_resources(request),
        tools_on_ray(config, tools) as client,
    ):
        say(f"running on Ray at {ray.get_runtime_context().gcs_address}:")
        for tool in tools:
            say(f"  {tool:<10}  {client.applications[tool]}")
        if address == LOCAL:  # Ray protects clusters that it starts itself with a token in ~/.ray
            say("to join from here: RAY_AUTH_MODE=token and this address, as --address or --ray.address")
        say("jobs with the same settings share them; Ctrl-C stops them", flush=True)
        if http and listener:
            say(f"HTTP {'with' if token else 'without'} token at {url_of(listener)}", flush=True)
            app = create_app(client, tools, http, token, functools.partial(_statuses, client))
            if mcp:
                say(f"MCP at {url_of(listener)}{PATH}", flush=True)
                add_mcp_route(
                    app, create_mcp_server(client, [config.spec(tool) for tool in tools]), http, token
                )
            create_server(app).run(sockets=[listener])
        elif mcp:
            at_end.callback(os._exit, 0)  # a thread still reads standard input, which nothing can end
            run_on_stdio(create_mcp_server(client, [config.spec(tool) for tool in tools]))
            at_end.pop_all()
        else:
            threading.Event().wait()


@contextlib.contextmanager
def _with_resources(request: ResourceRequest) -> Iterator[None]:
    """The block begins when the cluster has what `request` asks for. ResourceError if it never will."""
    require_resources(request)
    yield


def url_of(listener: socket.socket) -> str:
    """Return the address that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _statuses(client: ServeTools) -> dict[str, str]:
    statuses = application_statuses()
    return {tool: statuses.get(name, "NOT_STARTED") for tool, name in client.applications.items()}
