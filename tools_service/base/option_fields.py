"""The options that configurations and argument classes stand for: name, type, default, help text.

In: a frozen pydantic model, or a dataclass of arguments. Out: `Field`s, with dotted names as the command
line has them (command_line.py parses by the same rules). help_text.py shows them.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from tools_service.base.settings import Frozen, NotAnOption

_POSITIONAL = get_args(tyro.conf.Positional[int])[1:]
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


@cache
def _help_texts(cls: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, which stand in its source and in that of its bases."""
    return {
        parameter.arg_name: parameter.description or ""
        for base in cls.__mro__[-2::-1]
        for parameter in docstring_parser.parse_from_object(base).params
    }


def argument_fields(arguments: Any) -> Iterator[Field]:
    """The options that an object of arguments (a dataclass) stands for, those of its configuration too."""
    cls = type(arguments)
    hints = get_type_hints(cls, include_extras=True)
    texts = _help_texts(cls)  # type: ignore[arg-type]  # a class is hashable
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


def option_names(arguments: Any) -> list[str]:
    """The names of all options, as they are typed."""
    fields = nested_fields(argument_fields(arguments))
    return [option_of(field) for field in fields if field.is_option and not field.is_positional]


def option_of(field: Field) -> str:
    """The option of a field, as it is typed: --corpus.max-tokens."""
    return f"--{field.name.replace('_', '-')}"


def plain_type(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without annotations and None, and its annotations."""
    marks: tuple[Any, ...] = ()
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            hint, *more = get_args(hint)
            marks += tuple(more)
        elif origin in (Union, types.UnionType):
            hint = next(part for part in get_args(hint) if part is not type(None))
        else:
            return hint, marks
