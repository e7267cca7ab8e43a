"""The one string of a call as typed arguments of a tool, and back (paper section 2: a call has one input).

In: the input of a call, and the JSON schema of the tool's parameters. Out: values by name, or a reason of a
few fixed words; the other way, the input that gives these values. Three styles:

- ``text``: the whole input is the value of the only parameter (or the only required one).
- ``positional``: ``a, b``. Values stand in the order of the schema. An optional one may be left out at the
  end, or be empty (``a, , c``).
- ``named``: ``key=value, key2="x, y"``.

White space round a value does not count. A value in double quotes has the escapes of JSON, so ``\\u005b``
gives a bracket, which a call cannot hold as it is. A comma inside quotes or parentheses separates no values.
A number is one of JSON, or ``+3`` or ``.5``; it has no thousands separators. Truth is ``true`` or ``false``,
no value is ``null``. A list is written ``(a, b)``, with parentheses because a call has no brackets, and an
object is JSON with parentheses for its lists. A missing optional argument stays missing: defaults are the
tool's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from tools_service.base.errors import ToolformerError
from tools_service.base.printable import printable
from tools_service.contract.parameters import Parameters, ParametersError, allowed_types, reason
from tools_service.contract.values import (
    NOT_IN_A_CALL,
    RefusedError,
    read_value,
    split_values,
    write_value,
)

Style = Literal["text", "positional", "named"]

_KEY = re.compile(r'\s*([^\s,="(){}\[\]]+)\s*=(.*)', re.DOTALL)


class ArgumentsError(ToolformerError, ValueError):
    """Values that no input of a call gives."""


class CallArguments:
    """How inputs of calls give the arguments of one tool. Safe in several threads."""

    def __init__(self, parameters: Mapping[str, Any], style: Style | None = None) -> None:
        """`style` None is "text" for one parameter and "positional" for several.

        Raises ParametersError for a schema that cannot be used, or that does not fit the style.
        """
        self.parameters = Parameters(parameters)
        self._names = names = list(self.parameters.properties)
        self.style: Style = style or ("text" if len(names) == 1 else "positional")
        if self.style == "text" and len(names) > 1:
            self._names = [name for name in names if name in self.parameters.required]
        if self.style == "text" and len(self._names) != 1:
            raise ParametersError(
                f'arguments = "text" needs a tool with one parameter, this one has {len(names)} '
                f'({printable(", ".join(names), 80)}); write arguments = "positional" or "named"'
            )
        if self.style == "named" and (odd := [name for name in names if not _is_key(name)]):
            raise ParametersError(
                f"the parameter {printable(odd[0], 40)!r} cannot be written as a key; "
                'write arguments = "positional"'
            )

    def parse(self, text: str) -> dict[str, Any] | str:
        """The values that `text` gives, by name and checked against the schema, or the reason for none."""
        values = {}
        try:
            for name, written in self._written(text).items():
                values[name] = self._value_of(name, written)
        except RefusedError as refused:
            return str(refused)
        return self.parameters.violation(values) or values

    def write(self, values: Mapping[str, Any]) -> str:
        """The input of a call that `parse` reads as `values`. Raises ArgumentsError if there is none."""
        try:
            text = self._text_of(values)
        except RefusedError as refused:
            raise ArgumentsError(f"cannot write {_shown(values)} in a call: {refused}") from refused
        parsed = self.parse(text)
        if parsed != values or NOT_IN_A_CALL.search(text):
            why = parsed if isinstance(parsed, str) else "no input of a call has this value"
            raise ArgumentsError(f"cannot write {_shown(values)} in a call: {why}")
        return text

    def _text_of(self, values: Mapping[str, Any]) -> str:
        properties = self.parameters.properties
        if self.style == "text":
            value = values.get(self._names[0], "")
            return value if isinstance(value, str) else write_value(value, properties[self._names[0]])
        written = {name: write_value(values[name], properties[name]) for name in properties if name in values}
        if self.style == "named":
            return ", ".join(f"{name}={text}" for name, text in written.items())
        items = [written.get(name, "") for name in properties]
        while items and not items[-1]:
            items.pop()
        return ", ".join(items).strip()

    def _written(self, text: str) -> dict[str, str]:
        """The text of each argument that `text` gives, by name."""
        if self.style == "text":
            return {self._names[0]: text.strip()} if text.strip() else {}
        items = split_values(text, after_key=self.style == "named") if text.strip() else []
        if self.style == "positional":
            if len(items) > len(self._names):
                raise RefusedError("too many arguments")
            return {name: item for name, item in zip(self._names, items, strict=False) if item.strip()}
        written: dict[str, str] = {}
        for item in items:
            if not (match := _KEY.fullmatch(item)):
                raise RefusedError("not key=value")
            name, value = match.groups()
            if name not in self.parameters.properties:
                raise RefusedError("unknown argument")
            if name in written:
                raise RefusedError(reason("repeated argument", name))
            written[name] = value
        return written

    def _value_of(self, name: str, written: str) -> Any:
        schema = self.parameters.properties[name]
        if self.style == "text" and "string" in allowed_types(schema):
            return written
        try:
            return read_value(written, schema)
        except RefusedError as refused:
            raise RefusedError(reason(str(refused), name)) from refused


def _is_key(name: str) -> bool:
    match = _KEY.fullmatch(f"{name}=")
    return match is not None and match[1] == name


def _shown(values: Mapping[str, Any]) -> str:
    return printable(repr(dict(values)), 80)
