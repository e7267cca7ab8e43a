"""What a function says of itself: name, description and parameters, from its signature and docstring.

In: a function of Python, or another object that can be called. Out: the JSON schema of its parameters, and
what converts JSON values to their types. pydantic reads the types; docstring_parser reads docstrings in the
styles of Google, numpy and Sphinx. It calls nothing.
"""

from __future__ import annotations

import datetime
import functools
import inspect
from collections.abc import Callable
from typing import Any

import docstring_parser
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from tools_service.base.errors import brief
from tools_service.base.printable import printable
from tools_service.contract.parameters import ParametersError

DATE = "date"  # the parameter that gets the date of the text


class FunctionError(ParametersError):
    """A function that cannot be a tool. The message says why, and how to change that."""


class FunctionSignature:
    """The signature of a function: `name`, `description`, the JSON schema `parameters`.

    `adapters` convert the values by name. `dated`: a parameter ``date: datetime.date | None`` gets the
    date of the text; it is not among the parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises FunctionError for a function that cannot be a tool."""
        self.name = _name(function)
        self.signature = _signature(function, self.name)
        date = self.signature.parameters.get(DATE)
        self.dated = date is not None and date.annotation == datetime.date | None
        self.adapters = {
            name: _adapter(parameter, self.name)
            for name, parameter in self.signature.parameters.items()
            if not (self.dated and name == DATE)
        }
        docstring = _docstring(function)
        self.description = _one_line(docstring.description)
        self.parameters = self._parameters(docstring)

    def _parameters(self, docstring: docstring_parser.Docstring) -> dict[str, Any]:
        schemas, definitions = TypeAdapter.json_schemas(
            [(name, "validation", adapter) for name, adapter in self.adapters.items()]
        )
        descriptions = {documented.arg_name: documented.description for documented in docstring.params}
        properties: dict[str, Any] = {}
        required = []
        for name in self.adapters:
            properties[name] = schema = dict(schemas[name, "validation"])
            if description := _one_line(descriptions.get(name)):
                schema.setdefault("description", description)
            default = self.signature.parameters[name].default
            if default is inspect.Parameter.empty:
                required.append(name)
            else:
                schema["default"] = to_jsonable_python(default, fallback=str)
        return {"type": "object", "properties": properties, "required": required, **definitions}


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name(function: Any) -> str:
    return str(getattr(_unwrapped(function), "__name__", type(function).__name__))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _docstring(function: Any) -> docstring_parser.Docstring:
    documented = _unwrapped(function)
    if not inspect.isroutine(documented):  # an object of a class
        documented = documented.__call__ if documented.__call__.__doc__ else type(documented)
    text = inspect.getdoc(documented) or ""
    try:
        return docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return docstring_parser.parse(text.partition("\n\n")[0])


def _signature(function: Any, name: str) -> inspect.Signature:
    """The signature with its types. FunctionError unless each parameter has a name and a type."""
    if inspect.isclass(function) or not callable(function):
        raise FunctionError(f"{name}: is {'a class' if callable(function) else 'a value'}, not a function")
    called = _unwrapped(function)
    called = called if inspect.isroutine(called) else called.__call__
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise FunctionError(f"{name}: is async; write a plain function, calls run in threads of their own")
    if inspect.isgeneratorfunction(called):
        raise FunctionError(f"{name}: is a generator; return the result instead of yielding it")
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception as error:  # annotations are code
        raise FunctionError(f"{name}: its signature cannot be read: {brief(error)}") from error
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise FunctionError(f"{name}: takes any arguments ({parameter}); name each parameter of a tool")
        if parameter.annotation is inspect.Parameter.empty:
            raise FunctionError(
                f"{name}: its parameter {parameter.name} has no type; write for example {parameter.name}: str"
                " (or, for lists of calls, Sequence[ToolInput])"
            )
    return signature


def _adapter(parameter: inspect.Parameter, function: str) -> TypeAdapter[Any]:
    """What converts the value of a parameter. FunctionError for a type that no JSON value gives."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(parameter.annotation)
        adapter.json_schema()
        return adapter
    except Exception as error:  # types are code
        shown = printable(inspect.formatannotation(parameter.annotation), 80)
        raise FunctionError(
            f"{function}: no text gives a value of the type {shown} of its parameter {parameter.name}; use "
            "str, int, float, bool, datetime.date, Literal, an Enum, or lists of these"
        ) from error
