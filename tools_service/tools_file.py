"""One TOML file for all tools: `--tools-file FILE` lays its values over a ToolsConfig.

In: a configuration, and a file with the sections and names of config.py (cluster/tools.toml
explains all). Out: the configuration with the file's values. An unknown key or a value out of range
is an error that names file and key. Relative paths count from the working folder.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import Frozen
from tools_service.config import ToolsConfig

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
    """Return `config` with the file's values in every ToolsConfig inside it."""
    return config if file is None else _overlay(config, _read(file), file)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ToolsFileError(f"--tools-file {file}: nested too deeply") from error
    except OSError as error:
        raise ToolsFileError(f"--tools-file {file}: {error.strerror}") from error
    except ValueError as error:  # TOML, UTF-8, and a path that cannot be one
        raise ToolsFileError(f"--tools-file {file}: not TOML: {error}") from error


def _overlay(config: C, values: Mapping[str, Any], file: Path) -> C:
    if isinstance(config, ToolsConfig):
        return _validate(config, values, file)
    sections = {name: value for name, value in config if isinstance(value, Frozen)}
    updated = {name: _overlay(section, values, file) for name, section in sections.items()}
    return config.model_copy(update=updated)


def _validate(config: C, values: Mapping[str, Any], file: Path) -> C:
    try:
        return type(config).model_validate(_merge(config.model_dump(), values))
    except ValidationError as error:
        problems = [_explain(type(config), item["loc"], item["msg"], item["type"]) for item in error.errors()]
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
    return f"{key}: there is no such key; there are {', '.join(section.model_fields)}"
