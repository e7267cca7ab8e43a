"""Creates tools from the configuration (paper section 3), and says which cannot be had.

In: names of tools and a ToolsConfig. Out: tools that are ready to answer, errors for tools that
cannot be had, and a fingerprint of all that a tool is made from. It builds no index.

The class behind a tool may have these class methods, all optional; `tools` is the whole ToolsConfig:

    create(spec, settings, tools)   the tool; by default the class is called, with settings if it has `Config`
    check(spec, settings, tools)    raises ConfigurationError if the tool cannot be had
    prepare(settings)               builds what the tool reads, before it is created anywhere
    reads(settings)                 files, folders and models that the tool is made from
    depends_on(settings)            tools whose settings and files it uses, too

A tool may have a `description` (a text) and `arguments` (CallArguments), which drafted prompts show.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from tools_service.base.errors import ToolformerError, brief
from tools_service.base.fingerprint import content_digest, fingerprint, input_states
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.settings import Frozen, ModelSource
from tools_service.base.staged_models import staged_source
from tools_service.base.version import __version__
from tools_service.config import ToolsConfig
from tools_service.contract.declarations import import_object, settings_class, undeclared
from tools_service.contract.functions import tool_of_function
from tools_service.contract.settings import ToolSettings
from tools_service.contract.signatures import FunctionError
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import Tool, ToolUnavailableError

C = TypeVar("C", bound=Frozen)


def require_declared(tools: Iterable[str], config: ToolsConfig, field: str = "method.tools") -> None:
    """Raise ToolUnavailableError unless all `tools` are declared; the option `field` named them."""
    if problem := undeclared(tools, config.specs):
        raise ToolUnavailableError(f"{field}: {problem}")


def require_available(
    tools: Iterable[str], config: ToolsConfig, field: str = "method.tools", *, can_be_left_out: bool = True
) -> None:
    """Raise ToolUnavailableError unless all `tools` can be had; the option `field` named them.

    The message advises to leave the tool out where it `can_be_left_out` of the field.
    """
    tools = tuple(tools)
    require_declared(tools, config, field)
    for tool in tools:
        spec = config.spec(tool)
        implementation = _implementation(spec)
        settings_class(spec)
        _require_callable(spec, implementation)
        if hasattr(implementation, "check"):
            try:
                implementation.check(spec, config.of(tool), config)
            except ToolUnavailableError as error:
                advice = f", or leave {tool} (in {field}) out" if can_be_left_out else ""
                raise ToolUnavailableError(f"{error}{advice}") from error


def load_tool(name: str, config: ToolsConfig) -> Tool:
    """Return the tool called `name`. What it reads must have been prepared before."""
    require_declared([name], config, "tools")
    spec, settings = config.spec(name), config.of(name)
    implementation: Any = _implementation(spec)
    if hasattr(implementation, "create"):
        tool: Tool = implementation.create(spec, settings, config)
        return tool
    if not inspect.isclass(implementation):
        return tool_of_function(spec, implementation)
    try:
        created = _create(spec, implementation, settings)
    except ToolformerError:
        raise
    except (Exception, SystemExit) as error:  # the class is a stranger's
        what = f"{implementation.__name__} cannot be created: {type(error).__name__}: {brief(error)}"
        raise ToolUnavailableError(f"tools.{name}: {what}") from error
    return created if _answers_lists(created) else tool_of_function(spec, created)


def _create(spec: ToolSpec, implementation: Any, settings: ToolSettings) -> Any:
    takes_settings = spec.config is not None or hasattr(implementation, "Config")
    return implementation(settings) if takes_settings else implementation()


def _implementation(spec: ToolSpec) -> Any:
    return import_object(spec.implementation, f"tools.{spec.name}.class")


def _require_callable(spec: ToolSpec, implementation: Any) -> None:
    """Raise FunctionError unless what `spec` names can answer calls, as far as its signature shows."""
    if hasattr(implementation, "create"):
        return
    if not inspect.isclass(implementation):
        tool_of_function(spec, implementation)
    elif not any("__call__" in vars(part) for part in implementation.__mro__):
        raise FunctionError(f"tools.{spec.name}: the class {implementation.__name__} has no __call__")
    elif not _answers_lists(method := functools.partial(implementation.__call__, None)):
        tool_of_function(spec, method)


def _answers_lists(tool: Any) -> bool:
    """Whether a tool takes a list of ToolInput, not the parameters of one call."""
    parameters = list(inspect.signature(tool).parameters.values())
    return len(parameters) == 1 and "ToolInput" in str(parameters[0].annotation)


def with_dependencies(tools: Iterable[str], config: ToolsConfig) -> list[str]:
    """`tools`, and the tools that they depend on, each once."""
    pending, found = list(tools), dict[str, None]()
    while pending:
        tool = pending.pop(0)
        if tool not in found:
            found[tool] = None
            implementation = _implementation(config.spec(tool))
            if hasattr(implementation, "depends_on"):
                pending += implementation.depends_on(config.of(tool))
    return list(found)


def prepare_tools(config: ToolsConfig, tools: Iterable[str]) -> None:
    """Build what `tools` read, an index for example."""
    for tool in with_dependencies(tools, config):
        implementation = _implementation(config.spec(tool))
        if hasattr(implementation, "prepare"):
            implementation.prepare(config.of(tool))


def files_read(config: ToolsConfig, tools: Iterable[str]) -> list[str]:
    """The files, folders and models that `tools` are made from, each once."""
    read: dict[str, None] = {}
    for tool in with_dependencies(tools, config):
        implementation = _implementation(config.spec(tool))
        if hasattr(implementation, "reads"):
            read |= dict.fromkeys(map(str, implementation.reads(config.of(tool))))
    return list(read)


def with_absolute_paths(config: ToolsConfig) -> ToolsConfig:
    """Return `config` with absolute folders: replicas have a working folder of their own."""
    return config.with_sections(_absolute)


def _absolute(settings: C) -> C:
    """Settings with absolute paths and folders of models, in nested settings, too."""
    update: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Frozen):
            update[name] = _absolute(value)
        elif isinstance(value, Path):
            update[name] = value.resolve()
        elif any(isinstance(mark, ModelSource) for mark in field.metadata):
            source = staged_source(value)
            update[name] = source if may_be_hub_name(source) else str(Path(source).expanduser().resolve())
    return settings.model_copy(update=update)


def tool_fingerprint(config: ToolsConfig, tool: str) -> str:
    """Return a hex digest of what replicas of `tool` are made from: settings, version, files, code."""
    config = with_absolute_paths(config)
    parts: list[object] = [__version__, config.of(tool).model_dump(mode="json")]
    for used in with_dependencies([tool], config):
        parts += [
            config.spec(used).model_dump(mode="json"),
            config.of(used).model_dump(mode="json", exclude={"deployment"}),
            _code_digest(_implementation(config.spec(used))),
        ]
    parts += input_states(files_read(config, [tool]))
    return fingerprint(parts)


def _code_digest(implementation: Any) -> str | None:
    """The digest of the file that defines a class or function; None if there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(implementation))
    except TypeError:
        return None
    return content_digest(Path(file)) if file and Path(file).is_file() else None
