"""Types and values of fields in words, as Markdown. tools_service/base/option_fields.py lists the fields."""

from __future__ import annotations

import types
from collections.abc import Mapping
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pydantic
import tyro

from reference.markdown import code
from tools_service.base.settings import Frozen

_POSITIONAL = get_args(tyro.conf.Positional[int])[1:]
_LARGE = 10**6  # upper bounds above it only refuse nonsense
_NAMES = {int: "whole number", float: "number", str: "text", Path: "path", bool: "yes or no", Any: "anything"}


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
