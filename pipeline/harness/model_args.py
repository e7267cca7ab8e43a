"""The `model_args` of lm-evaluation-harness as a configuration.

In: names and values, as ``pretrained=runs/model,calls=False`` gives them. Out: a `HarnessConfig`. A name that
no configuration has is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.base.config import ModelConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import GenerateConfig
from pipeline.harness.errors import HarnessError
from tools_service.base.errors import brief
from tools_service.tools_file import with_tools_file

_OF_HARNESS = ("calls", "likelihoods_without_calls", "max_length", "batch_size")


def config_of(model_args: Mapping[str, Any]) -> HarnessConfig:
    """The configuration of `model_args`: `pretrained` is the model's path, `tools_file` a tools file,
    other names are fields of HarnessConfig, ModelConfig or GenerateConfig. Raises HarnessError."""
    values = dict(model_args)
    values.pop("max_batch_size", None)  # the harness passes it to every model
    tools_file = values.pop("tools_file", None)
    if "pretrained" in values:
        values["path"] = values.pop("pretrained")
    own = {name: values.pop(name) for name in _OF_HARNESS if name in values}
    model = {name: values.pop(name) for name in ModelConfig.model_fields if name in values}
    try:
        generation = GenerateConfig.model_validate({"max_new_tokens": 256, **values, "model": model})
        config = HarnessConfig.model_validate({**own, "generation": generation})
    except ValidationError as error:
        raise HarnessError(f"model_args: {brief(error)}") from error
    return with_tools_file(config, None if tools_file is None else Path(str(tools_file)))
