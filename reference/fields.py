"""The fields of configurations and of argument classes: name, type in words, default, help text.

In: a frozen pydantic model or a dataclass of arguments. Out: `Field`s, with dotted names as the command
line has them. The rules are those of tools_service/base/command_line.py.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import docstring_parser
import pydantic
import tyro

from reference.markdown import code
from tools_service.base.settings import Frozen, NotAnOption

_POSITIONAL = get_args(tyro.conf.Positional[int])[1:]
_LARGE = 10**6  # upper bounds above it only refuse nonsense
_NAMES = {int: "whole number", float: "number", str: "text", Path: "path", bool: "yes or no", Any: "anything"}


TOOL = "TOOL"  # stands for the name of a tool's section


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field with its value.

    `name` has dots for nesting; in `pattern` the section of a tool is `TOOL`. `owner` declares the field.
    """

    name: str
    pattern: str
    type: Any
    value: Any
    help: str
    owner: type
    is_option: bool = True
    is_positional: bool = False

    @property
    def tool(self) -> str | None:
        """The section that `TOOL` stands for."""
        pairs = zip(self.pattern.split("."), self.name.split("."), strict=True)
        return next((name for pattern, name in pairs if pattern == TOOL), None)


def model_fields(model: type[Frozen], config: Frozen | None = None) -> Iterator[Field]:
    """The fields of a model, with their defaults; with `config` its values, and its sections for tools."""
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        if config is not None:
            value = getattr(config, name)
        else:
            value = ... if field.is_required() else field.get_default(call_default_factory=True)
        yield Field(
            name=name,
            pattern=name,
            type=hints[name],
            value=value,
            help=field.description or "",
            owner=next(cls for cls in model.__mro__ if name in inspect.get_annotations(cls)),
            is_option=not any(isinstance(mark, NotAnOption) for mark in field.metadata),
        )
    for name, value in ((config.__pydantic_extra__ if config else None) or {}).items():
        yield Field(name=name, pattern=TOOL, type=type(value), value=value, help="", owner=model)


def nested_fields(fields: Iterable[Field]) -> Iterator[Field]:
    """`fields`, with those of a configuration in the place of the field that holds it."""
    for field in fields:
        if not isinstance(field.value, Frozen):
            yield field
            continue
        for inner in nested_fields(model_fields(type(field.value), field.value)):
            name, pattern = f"{field.name}.{inner.name}", f"{field.pattern}.{inner.pattern}"
            yield replace(
                inner,
                name=name.lstrip("."),
                pattern=pattern.lstrip("."),
                help=inner.help or field.help,
            )


def argument_fields(arguments: Any) -> Iterator[Field]:
    """The options that an object of arguments (a dataclass) stands for, those of its configuration too."""
    cls = type(arguments)
    hints = get_type_hints(cls, include_extras=True)
    texts = {
        parameter.arg_name: parameter.description or ""
        for base in cls.__mro__[-2::-1]
        for parameter in docstring_parser.parse_from_object(base).params
    }
    for field in dataclass_fields(cls):
        marks = getattr(hints[field.name], "__metadata__", ())
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        name = names[0] if names else field.name
        yield Field(
            name=name,
            pattern=name,
            type=hints[field.name],
            value=getattr(arguments, field.name),
            help=texts.get(field.name, ""),
            owner=cls,
            is_positional=any(mark in _POSITIONAL for mark in marks),
        )


def describe_type(hint: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words, with its bounds; Markdown."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *marks = get_args(hint)
        marks = [part for mark in marks for part in _flat(mark)]
        return describe_type(inner, (*marks, *metadata))
    if origin in (Union, types.UnionType):
        parts = [describe_type(part, metadata) for part in get_args(hint) if part is not type(None)]
        return " or ".join(parts)
    if origin is Literal:
        return " ".join(code(str(value)) for value in get_args(hint))
    if origin is tuple:
        return f"several: {describe_type(get_args(hint)[0])}"
    if origin is dict or (isclass(origin) and issubclass(origin, Mapping)):
        return f"pairs: name, {describe_type(get_args(hint)[1])}"
    if origin is not None:
        return describe_type(origin)
    if isclass(hint) and issubclass(hint, pydantic.BaseModel):
        return code(hint.__name__)
    return _NAMES.get(hint, code(getattr(hint, "__name__", str(hint)))) + _bounds(metadata)


def _flat(mark: Any) -> list[Any]:
    return list(mark.metadata) if isinstance(mark, pydantic.fields.FieldInfo) else [mark]


def _bounds(metadata: tuple[Any, ...]) -> str:
    least = [mark.ge for mark in metadata if isinstance(mark, annotated_types.Ge) and mark.ge > -_LARGE]
    above = [mark.gt for mark in metadata if isinstance(mark, annotated_types.Gt)]
    most = [mark.le for mark in metadata if isinstance(mark, annotated_types.Le) and mark.le < _LARGE]
    words = [f"above {max(above):g}"] if above else [f"at least {max(least):g}"] if least else []
    words += [f"at most {min(most):g}"] if most else []
    return "".join(f", {part}" for part in words)


def describe_value(value: Any) -> str:
    """A default, as Markdown; a dash if there is none."""
    if value in (..., None, (), {}, tyro.MISSING):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(code(str(item)) for item in value)
    if isinstance(value, Mapping):
        return " ".join(code(f"{name} {item}") for name, item in value.items())
    if isinstance(value, Frozen):
        return code(type(value).__name__)
    return code(f"{value:,}".replace(",", "_") if isinstance(value, int) and value >= 10_000 else str(value))
