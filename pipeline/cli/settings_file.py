"""Reads a file of settings, YAML or TOML, with the line of each.

In: a path. Out: plain values (mappings, lists, texts, numbers), and the lines where they stand. Only data
is read: no object is made from a tag, and YAML's aliases, which can make a small file huge, are refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools_service.base.errors import ConfigurationError

Keys = tuple[str | int, ...]


class SettingsFileError(ConfigurationError):
    """The file cannot be read, or holds an unknown name or a wrong value; the message names the line."""


@dataclass(frozen=True)
class SettingsFile:
    """The content of a file, and the line of each value by its keys; no lines for TOML."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[Keys, int] = field(default_factory=dict)
    option: str = "--config"
    """The option that names the file, for messages."""

    @staticmethod
    def read(path: Path, option: str = "--config") -> SettingsFile:
        """Raises SettingsFileError."""
        try:
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix.lower() == ".toml":
                return SettingsFile(path, tomllib.loads(text), option=option)
            return _read_yaml(path, text, option)
        except OSError as error:
            raise SettingsFileError(f"{option} {path}: {error.strerror or error}") from error
        except RecursionError as error:
            raise SettingsFileError(f"{option} {path}: nested too deeply") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsFileError(f"{option} {path}: not TOML: {error}") from error
        except yaml.YAMLError as error:
            raise SettingsFileError(f"{option} {path}{_explain(error)}") from error
        except ValueError as error:  # no UTF-8, or a value that YAML resolves to an impossible date
            raise SettingsFileError(f"{option} {path}: cannot be read: {error}") from error

    def error(self, keys: Keys, problem: str) -> SettingsFileError:
        """An error about the value at `keys`."""
        known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), None)
        place = f", line {self.lines[known]}" if known is not None else ""
        return SettingsFileError(f"{self.option} {self.path}{place}: {problem}")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*NAME) are not read", problem_mark=mark)
        return super().compose_node(parent, index)


def _read_yaml(path: Path, text: str, option: str) -> SettingsFile:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        if node is None:
            return SettingsFile(path, {}, option=option)
        if not isinstance(node, yaml.MappingNode):
            raise SettingsFileError(f"{option} {path}: holds no settings; write NAME: VALUE lines")
        _find_lines(node, (), lines)
        return SettingsFile(path, loader.construct_document(node), lines, option)
    finally:
        loader.dispose()


def _find_lines(node: yaml.Node, keys: Keys, lines: dict[Keys, int]) -> None:
    """Fill in `lines`. Raises YAMLError for a key that is no text, or is given twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*keys, index] = item.start_mark.line + 1
            _find_lines(item, (*keys, index), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag != "tag:yaml.org,2002:str":
            problem = f"the name {getattr(key, 'value', '')!s:.40} is not a text; write it in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        if (*keys, key.value) in lines:
            problem = f"{key.value} is given twice; the first is in line {lines[*keys, key.value]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        lines[*keys, key.value] = key.start_mark.line + 1
        _find_lines(value, (*keys, key.value), lines)


def _explain(error: yaml.YAMLError) -> str:
    """Line and problem in one line, as the end of a sentence."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}: {error.problem}"
    return f": not YAML: {' '.join(str(error).split())}"
