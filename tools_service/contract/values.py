"""The text of one argument of a call as a typed value, and back; arguments.py has the rules.

In: the text of a value, and the JSON schema of its parameter. Out: the value, or the kind of reason for
none; the other way, the text that gives a value. It knows nothing of the parameters beside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from tools_service.contract.parameters import allowed_types, item_schema

# What the input of a call cannot hold (tools_service/syntax/calls.py).
NOT_IN_A_CALL = re.compile(r"[\[\]\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd\ud800-\udfff]|(?<=-)>")

MAX_CHARACTERS = 2_000  # of an input that is not one string; calls have about 60 tokens
_MAX_DEPTH = 16
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OUTSIDE_STRINGS = re.compile(rf"{_STRING.pattern}|[()\[\]]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_CLOSING = {"(": ")", "[": "]"}
_AS_BRACKETS = {"(": "[", ")": "]"}
_AS_PARENTHESES = {"[": "(", "]": ")"}
_NOT_A_VALUE = object()


class RefusedError(Exception):
    """An input, or the text of one value, has no value; the argument is the reason."""


def split_values(text: str, after_key: bool = False) -> list[str]:
    """`text`, split at its commas outside quotes and parentheses.

    A quote counts where a value begins; with `after_key` that is also behind the first ``=``.
    """
    _check_length(text)
    items, start, depth, index = [], 0, 0, 0
    value_begins = True
    while index < len(text):
        character = text[index]
        if character == '"' and (value_begins or depth):
            if not (string := _STRING.match(text, index)):
                raise RefusedError("misplaced quote")
            index, value_begins = string.end(), False
            continue
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= _MAX_DEPTH:
            raise RefusedError("unbalanced parentheses" if depth < 0 else "nested too deep")
        separates = character == "," and not depth
        if separates:
            items.append(text[start:index])
            start = index + 1
        ends_key = after_key and character == "=" and not depth and "=" not in text[start:index]
        value_begins = separates or ends_key or (value_begins and character.isspace())
        index += 1
    if depth:
        raise RefusedError("unbalanced parentheses")
    return [*items, text[start:]]


def read_value(text: str, schema: Any) -> Any:
    """The value of `text`. Of the types that `schema` allows, the first counts that can have it."""
    _check_length(text)
    text, types = text.strip(), allowed_types(schema)
    if text.startswith('"'):
        text = _unquoted(text)
        if "string" in types:
            return text
    for name, convert in _CONVERSIONS.items():
        if name in types and (value := convert(text, schema)) is not _NOT_A_VALUE:
            return value
    raise RefusedError(next((kind for wanted, kind in _KINDS if types & wanted), "wrong value"))


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RefusedError("too long")


def _unquoted(text: str) -> str:
    if not _STRING.fullmatch(text):
        raise RefusedError("misplaced quote")
    try:
        return str(json.loads(text, strict=False))
    except ValueError as error:
        raise RefusedError("wrong escape") from error


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
    items = split_values(inside) if inside else []
    if not all(item.strip() for item in items):
        return _NOT_A_VALUE
    return [read_value(item, item_schema(schema, index)) for index, item in enumerate(items)]


def _object(text: str, _schema: Any) -> Any:
    if not text.startswith("{") or len(split_values(text)) != 1:
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


def write_value(value: Any, schema: Any) -> str:
    """What `read_value` reads as `value`. Raises RefusedError for what is no value of JSON."""
    if isinstance(value, str):
        return value if _is_plain(value, schema) else _escaped(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        items = (write_value(item, item_schema(schema, index)) for index, item in enumerate(value))
        return f"({', '.join(items)})"
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error
    return _escaped(_OUTSIDE_STRINGS.sub(lambda found: _AS_PARENTHESES.get(found[0], found[0]), text))


def _escaped(text: str) -> str:
    """JSON whose strings have escapes for what the input of a call cannot hold."""
    return NOT_IN_A_CALL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _is_plain(value: str, schema: Any) -> bool:
    """Whether `value` needs no quotes."""
    if not value or value != value.strip() or re.search(r'[",(){}\\]', value) or NOT_IN_A_CALL.search(value):
        return False
    return all(
        convert(value, schema) is _NOT_A_VALUE
        for name, convert in _CONVERSIONS.items()
        if name != "string" and name in allowed_types(schema)
    )
