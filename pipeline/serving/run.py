"""`toolformer serve`: the model, its tools and the HTTP interface, until an interrupt.

In: a ServeConfig. Out: an endpoint. The interface runs in this process, on an address of its own; the model's
replicas and the tools run on Ray Serve (docs/decisions/0033). Ctrl-C and SIGTERM stop everything that was
started here. If this process is killed, the next job of the same tools.service stops what it left.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.base.serve_config import ServeConfig
from pipeline.engine.loading import require_model
from pipeline.inference.generator import available_tools
from pipeline.inference.params import DecodingParams
from pipeline.runtime.connection import ray_connection
from pipeline.serving.app import Endpoint, create_app
from pipeline.serving.chat import chat_template
from pipeline.serving.deployment import deploy_model, replica_states
from tools_service.contract.schemas import arguments_of, with_schema
from tools_service.runtime.resources import ProcessRequest, ResourceRequest
from tools_service.serving.deployment import application_statuses, lease, tools_on_ray
from tools_service.serving.http import bind_socket, create_server, read_token
from tools_service.serving.processes import tool_processes
from tools_service.serving.serve import sigterm_interrupts, url_of

TOKEN_VARIABLE = "TOOLFORMER_TOKEN"
_STATUS_AGE_S = 1.0  # Serve is asked at most so often
_OTHER_CPUS = 1.0  # of Serve's own processes and leases


def serve_model(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM. Everything that is wrong is found before a cluster starts, if it can be.

    Raises ConfigurationError, ModelStartError, ToolStartError.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    token = read_token(config.http, TOKEN_VARIABLE)
    require_model(config.generation.model)
    render = chat_template(config)
    tools = available_tools(config.generation)
    name = config.name or config.generation.model.path
    model = config.generation.model.with_absolute_path()  # of the replicas, which run elsewhere
    config = config.model_copy(update={"generation": config.generation.model_copy(update={"model": model})})
    specs = config.generation.tools.specs
    application = f"{config.generation.tools.service}-model-{uuid.uuid4().hex[:10]}"
    with contextlib.suppress(KeyboardInterrupt), sigterm_interrupts(), contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind_socket(config.http))
        stack.enter_context(ray_connection(resource_request(config, tools), config.address, "address"))
        stack.enter_context(sigterm_interrupts())  # Ray has put a handler of its own
        client = stack.enter_context(tools_on_ray(config.generation.tools, tools))
        stack.enter_context(lease(config.generation.tools.service, [application]))
        endpoint = Endpoint(
            deploy_model(config, client, application),
            DecodingParams.of(config.generation, tools),
            config.generation.date,
            {tool: arguments_of(with_schema(spec)) for tool, spec in specs.items()},
            render,
            name=name,
            http=config.http,
            token=token,
        )
        app = create_app(endpoint, config.http, Status(application, client.applications))
        print(f"{name} {'with' if token else 'without'} token at {url_of(listener)}/v1", flush=True)
        print(f"a page to try it: {url_of(listener)}/ (Ctrl-C ends)", flush=True)
        create_server(app).run(sockets=[listener])


class Status:
    """What /health says: replicas by state and the tools; healthy while at least one replica runs."""

    def __init__(self, application: str, tools: Mapping[str, str]) -> None:
        self._application, self._tools = application, tools
        self._asked, self._last = 0.0, (False, dict[str, Any]())

    def __call__(self) -> tuple[bool, Mapping[str, Any]]:
        if time.monotonic() - self._asked > _STATUS_AGE_S:
            replicas, statuses = replica_states(self._application), application_statuses()
            tools = {tool: statuses.get(name, "NOT_STARTED") for tool, name in self._tools.items()}
            self._last = replicas.get("RUNNING", 0) > 0, {"replicas": replicas, "tools": tools}
            self._asked = time.monotonic()
        return self._last


def resource_request(config: ServeConfig, tools: tuple[str, ...]) -> ResourceRequest:
    """The resources that the replicas and the tools need at the same time."""
    replicas = ProcessRequest(
        of="model replica",
        count=config.replicas,
        cpus=config.cpus_per_replica,
        gpus=config.gpus_per_replica,
        fewer_cpus="lower cpus_per_replica",
        fewer_gpus="lower gpus_per_replica (0 runs on the CPU)",
        fewer="lower --replicas",
    )
    return ResourceRequest(
        processes=(replicas, *tool_processes(config.generation.tools, tools, "generation.tools")),
        other_cpus=_OTHER_CPUS,
        wait_s=config.wait_s,
        wait_option="wait_s",
    )
