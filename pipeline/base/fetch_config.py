"""Typed configuration of `fetch`: which models to stage, and where. This module touches no file."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipeline.base.config import ModelConfig, require_declared
from tools_service.base.settings import FilePath, Frozen, NotNegativeInt, Text
from tools_service.config import ToolsConfig


class FetchConfig(Frozen):
    """Models to stage: those that a run reads, or those that are named."""

    models: tuple[Text, ...] = ()
    """Models to stage in place of the run's: names on the hub, or folders with pickled weights."""
    revision: Text | None = None
    """Branch, tag or commit of the one model that --models names. None: main, or what is staged already."""
    output: FilePath | None = None
    """Folder for a folder per model. None: HF_HOME/toolformer, where every command finds them by name."""
    model: ModelConfig = ModelConfig()
    """The model that annotates and is fine-tuned."""
    tools: ToolsConfig = Field(default_factory=ToolsConfig)
    for_tools: tuple[str, ...] = ()
    """Tools whose models are staged."""
    actors: NotNegativeInt = 0
    """Annotating actors, each with a copy of the model; said in the table."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_declared(self.for_tools, self.tools, "for_tools")
        return self
