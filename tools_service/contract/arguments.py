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

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tools_service.base.errors import ToolformerError
from tools_service.base.printable import printable
from tools_service.contract.parameters import Parameters, ParametersError, allowed_types, item_schema, reason

Style = Literal["text", "positional", "named"]

MAX_CHARACTERS = 2_000  # of an input; calls have about 60 tokens
_MAX_DEPTH = 16

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OUTSIDE_STRINGS = re.compile(rf"{_STRING.pattern}|[()\[\]]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_KEY = re.compile(r'\s*([^\s,="(){}\[\]]+)\s*=(.*)', re.DOTALL)
_CLOSING = {"(": ")", "[": "]"}
_AS_BRACKETS = {"(": "[", ")": "]"}
_AS_PARENTHESES = {"[": "(", "]": ")"}
# What the input of a call cannot hold (tools_service/syntax/calls.py).
_NOT_IN_A_CALL = re.compile(r"[\[\]\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd\ud800-\udfff]|(?<=-)>")
_NOT_A_VALUE = object()


class ArgumentsError(ToolformerError, ValueError):
    """Values that no input of a call gives."""


class _RefusedError(Exception):
    """An input, or the text of one value, has no value; the argument is the reason."""


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
        if len(text) > MAX_CHARACTERS:
            return "input too long"
        values = {}
        try:
            for name, written in self._written(text).items():
                values[name] = self._value_of(name, written)
        except _RefusedError as refused:
            return str(refused)
        return self.parameters.violation(values) or values

    def write(self, values: Mapping[str, Any]) -> str:
        """The input of a call that `parse` reads as `values`. Raises ArgumentsError if there is none."""
        properties = self.parameters.properties
        if self.style == "text":
            name = self._names[0]
            value = values.get(name, "")
            text = value if isinstance(value, str) else _written_value(value, properties[name])
        elif self.style == "named":
            text = ", ".join(
                f"{name}={_written_value(values[name], schema)}"
                for name, schema in properties.items()
                if name in values
            )
        else:
            items = [
                _written_value(values[name], schema) if name in values else ""
                for name, schema in properties.items()
            ]
            while items and not items[-1]:
                items.pop()
            text = ", ".join(items).strip()
        parsed = self.parse(text)
        if parsed != values or _NOT_IN_A_CALL.search(text):
            why = parsed if isinstance(parsed, str) else "no input of a call has this value"
            raise ArgumentsError(f"cannot write {printable(repr(dict(values)), 80)} in a call: {why}")
        return text

    def _written(self, text: str) -> dict[str, str]:
        """The text of each argument that `text` gives, by name."""
        if self.style == "text":
            return {self._names[0]: text.strip()} if text.strip() else {}
        items = _split(text, after_key=self.style == "named") if text.strip() else []
        if self.style == "positional":
            if len(items) > len(self._names):
                raise _RefusedError("too many arguments")
            return {name: item for name, item in zip(self._names, items, strict=False) if item.strip()}
        written: dict[str, str] = {}
        for item in items:
            if not (match := _KEY.fullmatch(item)):
                raise _RefusedError("not key=value")
            name, value = match.groups()
            if name not in self.parameters.properties:
                raise _RefusedError("unknown argument")
            if name in written:
                raise _RefusedError(reason("repeated argument", name))
            written[name] = value
        return written

    def _value_of(self, name: str, written: str) -> Any:
        schema = self.parameters.properties[name]
        if self.style == "text" and "string" in allowed_types(schema):
            return written
        try:
            return _value(written, schema)
        except _RefusedError as refused:
            raise _RefusedError(reason(str(refused), name)) from refused


def parse_arguments(
    text: str, parameters: Mapping[str, Any], style: Style | None = None
) -> dict[str, Any] | str:
    """`CallArguments.parse` for one input; the schema is read each time."""
    return CallArguments(parameters, style).parse(text)


def write_arguments(
    values: Mapping[str, Any], parameters: Mapping[str, Any], style: Style | None = None
) -> str:
    """`CallArguments.write` for one input; the schema is read each time."""
    return CallArguments(parameters, style).write(values)


def _is_key(name: str) -> bool:
    match = _KEY.fullmatch(f"{name}=")
    return match is not None and match[1] == name


def _split(text: str, after_key: bool = False) -> list[str]:
    """`text`, split at its commas outside quotes and parentheses.

    A quote counts where a value begins; with `after_key` that is also behind the first ``=``.
    """
    items, start, depth, index = [], 0, 0, 0
    value_begins = True
    while index < len(text):
        character = text[index]
        if character == '"' and (value_begins or depth):
            if not (string := _STRING.match(text, index)):
                raise _RefusedError("misplaced quote")
            index, value_begins = string.end(), False
            continue
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= _MAX_DEPTH:
            raise _RefusedError("unbalanced parentheses" if depth < 0 else "nested too deep")
        separates = character == "," and not depth
        if separates:
            items.append(text[start:index])
            start = index + 1
        ends_key = after_key and character == "=" and not depth and "=" not in text[start:index]
        value_begins = separates or ends_key or (value_begins and character.isspace())
        index += 1
    if depth:
        raise _RefusedError("unbalanced parentheses")
    return [*items, text[start:]]


def _value(text: str, schema: Any) -> Any:
    """The value of `text`. Of the types that `schema` allows, the first counts that can have it."""
    text, types = text.strip(), allowed_types(schema)
    if text.startswith('"'):
        text = _unquoted(text)
        if "string" in types:
            return text
    for name, convert in _CONVERSIONS.items():
        if name in types and (value := convert(text, schema)) is not _NOT_A_VALUE:
            return value
    raise _RefusedError(next((kind for wanted, kind in _KINDS if types & wanted), "wrong value"))


def _unquoted(text: str) -> str:
    if not _STRING.fullmatch(text):
        raise _RefusedError("misplaced quote")
    try:
        return str(json.loads(text, strict=False))
    except ValueError as error:
        raise _RefusedError("wrong escape") from error


def _number(text: str, _schema: Any) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return _NOT_A_VALUE


def _integer(text: str, schema: Any) -> Any:
    value = _number(text, schema)
    if isinstance(value, float):
        return int(value) if value.is_integer() else _NOT_A_VALUE
    return value


def _array(text: str, schema: Any) -> Any:
    if text[:1] not in _CLOSING or text[-1:] != _CLOSING[text[0]]:
        return _NOT_A_VALUE
    inside = text[1:-1].strip()
    items = _split(inside) if inside else []
    if not all(item.strip() for item in items):
        return _NOT_A_VALUE
    return [_value(item, item_schema(schema, index)) for index, item in enumerate(items)]


def _object(text: str, _schema: Any) -> Any:
    if not text.startswith("{") or len(_split(text)) != 1:
        return _NOT_A_VALUE
    with_brackets = _OUTSIDE_STRINGS.sub(lambda found: _AS_BRACKETS.get(found[0], found[0]), text)
    try:
        value = json.loads(with_brackets, parse_constant=_refuse_constant)
    except ValueError:
        return _NOT_A_VALUE
    return value if isinstance(value, dict) else _NOT_A_VALUE


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _boolean(text: str, _schema: Any) -> Any:
    return {"true": True, "false": False}.get(text.lower(), _NOT_A_VALUE)


def _null(text: str, _schema: Any) -> Any:
    return None if text.lower() == "null" else _NOT_A_VALUE


def _string(text: str, _schema: Any) -> Any:
    return text


_CONVERSIONS: dict[str, Callable[[str, Any], Any]] = {
    "null": _null,
    "boolean": _boolean,
    "number": _number,
    "integer": _integer,
    "array": _array,
    "object": _object,
    "string": _string,
}
_KINDS = (
    ({"number"}, "not a number"),
    ({"integer"}, "not a whole number"),
    ({"boolean"}, "not true or false"),
    ({"array"}, "not a list"),
    ({"object"}, "not an object"),
)


def _written_value(value: Any, schema: Any) -> str:
    """What `_value` reads as `value`."""
    if isinstance(value, str):
        return value if _is_plain(value, schema) else _escaped(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        items = (_written_value(item, item_schema(schema, index)) for index, item in enumerate(value))
        return f"({', '.join(items)})"
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentsError(f"cannot write {printable(repr(value), 80)} in a call: {error}") from error
    return _escaped(_OUTSIDE_STRINGS.sub(lambda found: _AS_PARENTHESES.get(found[0], found[0]), text))


def _escaped(text: str) -> str:
    """JSON whose strings have escapes for what the input of a call cannot hold."""
    return _NOT_IN_A_CALL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _is_plain(value: str, schema: Any) -> bool:
    """Whether `value` needs no quotes."""
    if not value or value != value.strip() or re.search(r'[",(){}\\]', value) or _NOT_IN_A_CALL.search(value):
        return False
    return all(
        convert(value, schema) is _NOT_A_VALUE
        for name, convert in _CONVERSIONS.items()
        if name != "string" and name in allowed_types(schema)
    )
