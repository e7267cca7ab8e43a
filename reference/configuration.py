"""The page of the configuration: every class of it, with every field."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from inspect import isclass
from typing import Any, get_args, get_type_hints

from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import Recipe, demo
from reference.fields import describe_type, describe_value
from reference.markdown import code, prose, table
from tools_service.base.option_fields import model_fields
from tools_service.base.settings import Frozen
from tools_service.config import HttpConfig
from tools_service.contract.declarations import installed_tools, settings_class_if_known
from tools_service.contract.settings import ToolSettings
from tools_service.contract.spec import ToolSpec
from tools_service.remote.settings import HttpToolConfig, McpConfig


def page() -> str:
    """Every class of the configuration with its fields."""
    parts = [_INTRODUCTION]
    sections = {model.__name__: model for model in models()}
    for _, model in sorted(sections.items()):
        parts += [f"## {model.__name__}\n", f"{prose((model.__doc__ or '').partition(chr(10) * 2)[0])}\n"]
        parts.append(table(("field", "type", "default", "meaning"), _rows(model, sections)))
    return "\n".join(parts)


_INTRODUCTION = """# Configuration

Every field of every section, with the default of the section: the paper's value where the paper has one.
Recipes change some of them; [the pages of the commands](commands.md) have their values. A field is an option
with the same name: `max_tokens` of `corpus` is `--corpus.max-tokens`. An unknown field, or a value out of
range, is refused with the name of the field.

`AnnotateConfig`, `MergeConfig`, `FinetuneConfig`, `GenerateConfig` and `EvaluateConfig` are the steps of a
`Recipe`. `ToolSpec` is a table `[tools.NAME]` of a [tools file](../tools.md#a-tool-of-your-own), and
`Deployment` its `deployment`.
"""


def models() -> set[type[Frozen]]:
    """The classes that a command line or a tools file fills in, and those nested in them."""
    found: set[type[Frozen]] = set()
    tools = (settings_class_if_known(spec) for spec in installed_tools().values())
    commands = (type(command.config(demo())) for command in COMMANDS.values())
    for model in (Recipe, ToolSpec, ToolSettings, HttpConfig, McpConfig, HttpToolConfig, *tools, *commands):
        _collect(model, found)
    return found


def _collect(model: type[Frozen], found: set[type[Frozen]]) -> None:
    if model not in found:
        found.add(model)
        for hint in get_type_hints(model, include_extras=True).values():
            for nested in _nested(hint):
                _collect(nested, found)


def _nested(hint: Any) -> Iterator[type[Frozen]]:
    if isclass(hint) and issubclass(hint, Frozen):
        yield hint
    for part in get_args(hint):
        yield from _nested(part)


def _rows(model: type[Frozen], classes: Collection[str]) -> Iterator[tuple[str, str, str, str]]:
    for field in model_fields(model):
        alias = model.model_fields[field.name].alias
        default = "required" if field.value is ... else describe_value(field.value)
        if isinstance(field.value, Frozen):
            default = ""
        kind = describe_type(field.type)
        yield code(alias or field.name), _linked(kind, classes), default, prose(field.help)
    extra = get_type_hints(model, include_extras=True).get("__pydantic_extra__")
    if "__pydantic_extra__" in inspect.get_annotations(model):
        section = describe_type(get_args(extra)[1])
        yield (
            "*tool*",
            _linked(section, classes),
            "",
            "A section for each tool, by its name in small letters.",
        )


def _linked(kind: str, classes: Collection[str]) -> str:
    """A type that is a class of the page is a link to it."""
    name = kind.strip("`")
    return f"[{kind}](#{name.lower()})" if name in classes else kind
