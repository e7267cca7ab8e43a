"""One TOML file for all tools: `--tools-file FILE` declares tools and lays values over a configuration.

In: a configuration, and a file. `[tools.NAME]` declares a tool (class, mcp or http names what answers) or
changes one that is declared elsewhere; `[wikisearch]` and the like are the sections of ToolsConfig
(cluster/tools.toml explains all). Out: the configuration with the file's values. An unknown key or a value
out of range is an error that names file and key. A prompt's path counts from the file's folder, all other
paths from the working folder.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import Frozen
from tools_service.config import SECTIONS, ToolsConfig, sections_model
from tools_service.contract.declarations import (
    DeclarationError,
    Declarations,
    import_object,
    installed_tools,
    settings_class,
)
from tools_service.contract.spec import ToolMethod, ToolSpec

C = TypeVar("C", bound=Frozen)


class ToolsFileError(ConfigurationError):
    """The file cannot be read, or holds an unknown key or a wrong value."""


def tools_file_of(argv: Sequence[str]) -> Path | None:
    """Return the file that `--tools-file` names. It is needed to parse the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tools-file", "--tools_file", nargs="?")
    file: str | None = parser.parse_known_args(argv)[0].tools_file
    if file is not None and not file.strip():
        raise ToolsFileError("--tools-file: must not be empty")
    return None if file is None else Path(file)


def with_tools_file(config: C, file: Path | None) -> C:
    """Return `config` with the file's values in every ToolsConfig inside it, and with its tools."""
    if file is None:
        return config
    values = _read(file)
    tables = values.pop("tools", {})
    try:
        if not isinstance(tables, Mapping):
            raise DeclarationError("tools: must be tables, [tools.NAME]")
        declarations = Declarations()
        for name, table in tables.items():
            declarations = _declare(declarations, name, table, values, file)
        return _overlay(config, values, declarations, file)
    except DeclarationError as error:
        raise ToolsFileError(f"--tools-file {file}: {error}") from error


def _declare(
    declarations: Declarations, name: str, table: Any, values: dict[str, Any], file: Path
) -> Declarations:
    """`declarations` with one table; settings of the tool go to its section in `values`."""
    field = f"tools.{name}"
    if not isinstance(table, Mapping):
        raise DeclarationError(f"{field}: must be a table")
    table = dict(table)
    if isinstance(table.get("prompt"), str):
        table["prompt"] = file.parent / table["prompt"]
    installed = installed_tools()
    if not table.keys() & _SOURCES and name not in installed:
        raise DeclarationError(
            f'{field}: say what answers its calls: class = "module:name", mcp = {{…}} or http = "http://…"; '
            f"without one of them it must be one of {', '.join(installed)}"
        )
    method = {key: table.pop(key) for key in table.keys() & ToolMethod.model_fields.keys()}
    if not table.keys() & _SOURCES:
        wrong = {key: method.pop(key) for key in _FIXED & method.keys()}
        if wrong:
            raise DeclarationError(f"{field}.{next(iter(wrong))}: only the declaration of a tool sets it")
        _checked(ToolMethod, method, field)
        values[name.lower()] = {**values.get(name.lower(), {}), **table}
        return replace(declarations, methods={**declarations.methods, name: method})
    spec = _spec(name, table, method, field)
    values[spec.section] = {**spec.settings, **values.get(spec.section, {})}
    return replace(declarations, declared=(*declarations.declared, spec))


def _spec(name: str, table: dict[str, Any], method: dict[str, Any], field: str) -> ToolSpec:
    """The declaration in a table; what is neither of a declaration nor of the method are settings."""
    sources = sorted(table.keys() & _SOURCES)
    if len(sources) > 1:
        raise DeclarationError(f"{field}: {' and '.join(sources)} exclude each other; keep one")
    if "mcp" in table:
        mcp = table.pop("mcp")
        if not isinstance(mcp, Mapping):
            raise DeclarationError(f'{field}.mcp: must be a table, {{command = ["…"], tool = "…"}}')
        table = {"class": MCP_TOOL, **mcp, **table}
    elif "http" in table:
        table = {"class": HTTP_TOOL, "url": table.pop("http"), **table}
    own = {key: table.pop(key) for key in table.keys() & _SPEC_KEYS}
    spec = _checked(ToolSpec, {"name": name, **own, **method, "settings": table}, field)
    import_object(spec.implementation, f"{field}.class")
    settings = settings_class(spec)
    for key in table.keys() - settings.model_fields.keys():
        keys = [*sorted(_SPEC_KEYS), *ToolMethod.model_fields, *settings.model_fields]
        raise DeclarationError(f"{field}.{key}: there is no such key; there are {', '.join(keys)}")
    _checked(settings, table, field)
    return spec


MCP_TOOL = "tools_service.remote.mcp:McpTool"
HTTP_TOOL = "tools_service.remote.http:HttpTool"
_SOURCES = {"class", "mcp", "http"}
_SPEC_KEYS = {"class", "config", "description", "parameters", "arguments", "dated"}
_FIXED = {"takes_input", "drop_input_only_after"}


def _checked(model: type[C], values: Mapping[str, Any], field: str) -> C:
    """An object of `model`. Raises DeclarationError, which names the keys in `field`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model, item["loc"], item["msg"], item["type"]) for item in error.errors()]
        raise DeclarationError("; ".join(f"{field}.{problem}" for problem in problems)) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ToolsFileError(f"--tools-file {file}: nested too deeply") from error
    except OSError as error:
        raise ToolsFileError(f"--tools-file {file}: {error.strerror}") from error
    except ValueError as error:  # TOML, UTF-8, and a path that cannot be one
        raise ToolsFileError(f"--tools-file {file}: not TOML: {error}") from error


def _overlay(config: C, values: Mapping[str, Any], declarations: Declarations, file: Path) -> C:
    if isinstance(config, ToolsConfig):
        declared = (*config.declared, *declarations.declared)
        tools: C = _validate(config, {**values, "declared": declared}, file)
        return tools
    if hasattr(config, "with_declarations"):
        updated: C = config.with_declarations(declarations)
        return updated
    sections = {name: value for name, value in config if isinstance(value, Frozen)}
    overlaid = {name: _overlay(section, values, declarations, file) for name, section in sections.items()}
    return config.model_copy(update=overlaid)


def _validate(config: ToolsConfig, values: Mapping[str, Any], file: Path) -> Any:
    try:
        return ToolsConfig.model_validate(_merge(config.model_dump(), values))
    except ValidationError as error:
        model = sections_model(values["declared"])
        problems = [_explain(model, item["loc"], item["msg"], item["type"]) for item in error.errors()]
        raise ToolsFileError(f"--tools-file {file}: {'; '.join(problems)}") from error


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **values}
    for name in defaults.keys() & values.keys():
        if isinstance(defaults[name], Mapping) and isinstance(values[name], Mapping):
            merged[name] = _merge(defaults[name], values[name])
    return merged


def _explain(model: type[BaseModel], location: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"{key}: {message.removeprefix('Value error, ')}"
    section: Any = model
    for name in location[:-1]:
        section = section.model_fields[str(name)].annotation
    keys = list(section.model_fields)
    if len(location) == 1 and model.__name__ == SECTIONS:
        keys = [name for name in ToolsConfig.model_fields if name != "declared"] + keys
    return f"{key}: there is no such key; there are {', '.join(keys)}"
