"""The models that a run reads: its causal LM, and those of its tools.

In: a FetchConfig. Out: `WantedModel`s, each with its field, its settings, and how often it is loaded. Fields
of the tools' settings that are marked as models count (ModelPath), those of other packages' tools, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.base.config import ModelConfig
from pipeline.base.fetch_config import FetchConfig
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.settings import Frozen, ModelSource
from tools_service.base.staged_models import staged_source
from tools_service.config import EncoderConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.settings import Deployment
from tools_service.tools.registry import with_dependencies

_NEEDS_ENCODER = ("dense", "hybrid")


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model of a run: the field with its name, the settings of what loads it, and how often it is loaded.

    `settings` is None for a model that --models names, which may be of any kind.
    """

    name: str
    field: str
    settings: Frozen | None
    dtype: str
    copies: str


def wanted_models(config: FetchConfig) -> list[WantedModel]:
    """Each model once, by its name; those that `config.models` names, if it names any."""
    named = [WantedModel(name, "models", None, config.model.dtype, "") for name in config.models]
    found: dict[str, WantedModel] = {}
    for model in named or _of_run(config):
        found.setdefault(model.name, model)
    return list(found.values())


def unstaged(model: ModelConfig, tools: ToolsConfig, names: Iterable[str]) -> list[str]:
    """The models of the hub that a run with these tools would read, and that are not staged."""
    config = FetchConfig(model=model, tools=tools, for_tools=tuple(names))
    found = [wanted.name for wanted in wanted_models(config)]
    return [name for name in found if may_be_hub_name(staged_source(name))]


def _of_run(config: FetchConfig) -> Iterator[WantedModel]:
    copies = f"{config.actors} actors" if config.actors else ""
    yield WantedModel(config.model.path, "model.path", config.model, config.model.dtype, copies)
    for tool in with_dependencies(config.for_tools, config.tools):
        yield from _of_tool(tool, config.tools)


def _of_tool(tool: str, tools: ToolsConfig) -> Iterator[WantedModel]:
    settings = tools.of(tool)
    yield from _in_settings(settings, f"tools.{tools.spec(tool).section}", _copies(settings.deployment))


def _copies(deployment: Deployment) -> str:
    least, most = deployment.min_replicas, deployment.max_replicas
    return f"{least if least == most else f'{least} to {most}'} replica{'s'[: most > 1]}"


def _in_settings(settings: Frozen, field: str, copies: str) -> Iterator[WantedModel]:
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, EncoderConfig) and not _needs_encoder(settings):
            continue
        if isinstance(value, Frozen):
            yield from _in_settings(value, f"{field}.{name}", copies)
        elif any(isinstance(mark, ModelSource) for mark in info.metadata):
            dtype = str(getattr(settings, "dtype", "float32"))
            yield WantedModel(str(value), f"{field}.{name}", settings, dtype, copies)


def _needs_encoder(settings: Frozen) -> bool:
    return not isinstance(settings, WikiSearchConfig) or settings.retriever in _NEEDS_ENCODER
