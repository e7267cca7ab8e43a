"""One TOML file for all tools: `--tools-file FILE` lays its values over a configuration's ToolsConfig.

In: a file with the sections and names of config.py (cluster/tools.toml is one with everything explained).
What it does not name stays as it was. An unknown key or a value out of range is an error that names file and
key. Relative paths in it count from the working folder, as on the command line.
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
    """The tools' configuration file cannot be read, or says something that is none of its fields."""


def tools_file_of(argv: Sequence[str]) -> Path | None:
    """The file that `--tools-file` names; its values are needed before the command line is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tools-file", "--tools_file", nargs="?", type=Path)
    found: Path | None = parser.parse_known_args(argv)[0].tools_file
    return found


def with_tools_file(config: C, file: Path | None) -> C:
    """`config` with the file's values in every ToolsConfig in it; as it is without a file."""
    return config if file is None else _laid_over(config, _read(file), file)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolsFileError(f"--tools-file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ToolsFileError(f"--tools-file {file}: not TOML: {error}") from error


def _laid_over(config: C, values: Mapping[str, Any], file: Path) -> C:
    if isinstance(config, ToolsConfig):
        return _overlaid(config, values, file)
    parts = {name: value for name, value in config if isinstance(value, Frozen)}
    return config.model_copy(update={name: _laid_over(part, values, file) for name, part in parts.items()})


def _overlaid(config: C, values: Mapping[str, Any], file: Path) -> C:
    try:
        return type(config).model_validate(_merged(config.model_dump(), values))
    except ValidationError as error:
        said = [_explained(type(config), one["loc"], one["msg"], one["type"]) for one in error.errors()]
        raise ToolsFileError(f"--tools-file {file}: {'; '.join(said)}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        under = below.get(name)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(under, value)
        else:
            merged[name] = value
    return merged


def _explained(model: type[BaseModel], place: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    section: Any = model
    for name in place[:-1]:
        section = section.model_fields[str(name)].annotation
    return f"{key}: there is no such key; there are {', '.join(section.model_fields)}"
