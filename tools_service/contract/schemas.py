"""The JSON schema of a tool as chat models and their trainers know it: a function with parameters.

In: the declaration of a tool. Out: its description and parameters, and the arguments of a call. A tool
whose declaration and code name no parameters takes one text, `input`, as the paper's do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tools_service.base.errors import ToolformerError
from tools_service.contract.arguments import CallArguments
from tools_service.contract.declarations import import_object
from tools_service.contract.parameters import ParametersError
from tools_service.contract.signatures import FunctionSignature
from tools_service.contract.spec import ToolSpec

INPUT = "input"
_NO_INPUT: dict[str, Any] = {"type": "object", "properties": {}}
_TEXT: dict[str, Any] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
}


def with_schema(spec: ToolSpec) -> ToolSpec:
    """`spec` with its description and parameters, read from its code where it does not name them.

    Its settings are left out: they may name machines. A class whose tool is remote has no parameters here.
    """
    description, parameters = spec.description, spec.parameters
    if parameters is None and not spec.takes_input:
        parameters = _NO_INPUT
    if not description or parameters is None:
        found = _implementation(spec)
        description = description or (inspect.getdoc(found) or "").partition("\n")[0]
        parameters = parameters or _parameters(found)
    return spec.model_copy(update={"description": description, "parameters": parameters, "settings": {}})


def function_schema(spec: ToolSpec) -> dict[str, Any]:
    """The schema in the form of OpenAI's API, of a declaration from `with_schema`."""
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


def arguments_of(spec: ToolSpec) -> Callable[[str], dict[str, Any]]:
    """How the input of a call becomes arguments by name. An input that does not parse is the text `input`."""
    if spec.parameters in (None, _TEXT):
        return lambda text: {INPUT: text}
    if not spec.takes_input:
        return lambda text: {}
    try:
        arguments = CallArguments(spec.parameters or _TEXT, spec.arguments)
    except ParametersError:
        return lambda text: {INPUT: text}

    def parsed(text: str) -> dict[str, Any]:
        values = arguments.parse(text)
        return {INPUT: text} if isinstance(values, str) else values

    return parsed


def _implementation(spec: ToolSpec) -> object:
    try:
        return import_object(spec.implementation, f"tools.{spec.name}.class")
    except ToolformerError:  # the declaration comes from a stored run
        return None


def _parameters(found: object) -> dict[str, Any]:
    if not inspect.isfunction(found):
        return _TEXT
    try:
        return FunctionSignature(found).parameters
    except ToolformerError:
        return _TEXT
