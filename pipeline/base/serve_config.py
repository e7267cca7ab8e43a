"""Typed configuration of the endpoint, `toolformer serve` (docs/serving.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.base.inference_config import GenerateConfig
from tools_service.base.settings import (
    FilePath,
    Frozen,
    Gpus,
    NotNegative,
    NotNegativeInt,
    PositiveInt,
    Resource,
    Text,
)
from tools_service.config import HttpConfig


class EndpointConfig(HttpConfig):
    """The address of the endpoint, and who may use it."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 8_000
    """Port to listen on; 0 chooses a free one."""
    token_file: FilePath | None = None
    """File with the token that callers must send; None reads the variable TOOLFORMER_TOKEN."""
    max_inputs: PositiveInt = 64
    """Most prompts in one request."""


class ServeConfig(Frozen):
    """The model behind OpenAI's interface, on Ray Serve."""

    generation: GenerateConfig = Field(default_factory=GenerateConfig)
    http: EndpointConfig = EndpointConfig()
    name: Text | None = None
    """Name of the model in the interface. None: model.path."""
    chat_template: Text | None = None
    """Chat template: a Jinja file, or `plain`, which puts the messages one below the other. None: the
    tokenizer's own; without one, chat requests are refused."""
    address: Text | None = None
    """Ray cluster to join (auto, ray://…). None: RAY_ADDRESS if it is set, else a local cluster."""
    replicas: PositiveInt = 1
    """Processes with a copy of the model each."""
    gpus_per_replica: Gpus = 1.0
    """GPUs per replica. 0: run on the CPU; 2 or more: spread the layers over them."""
    cpus_per_replica: Annotated[Resource, Field(gt=0.0)] = 1.0
    """CPUs per replica; on a CPU, also its number of threads."""
    wait_s: NotNegative = 30.0
    """Seconds to wait for nodes that a named cluster lacks, each time anew when one joins. While an
    autoscaler starts nodes, the wait has no limit."""
    max_rows: PositiveInt = 32
    """Prompts that a replica decodes together."""
    max_queued: NotNegativeInt = 256
    """Prompts that wait while all replicas are full. More are refused with status 429."""
