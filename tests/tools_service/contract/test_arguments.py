"""The input of a call as arguments: three styles, every wrong input a reason, and the way back."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools_service.contract.arguments import (
    ArgumentsError,
    CallArguments,
    Style,
)
from tools_service.contract.parameters import ParametersError
from tools_service.syntax.calls import Malformed, linearise, parse_call

pytestmark = pytest.mark.unit

Schema = dict[str, Any]


def parse_arguments(text: str, schema: Schema, style: Style | None = None) -> dict[str, Any] | str:
    return CallArguments(schema, style).parse(text)


def write_arguments(values: dict[str, Any], schema: Schema, style: Style | None = None) -> str:
    return CallArguments(schema, style).write(values)


def of(*required: str, **properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


CONVERT = of(
    "amount",
    "to",
    amount={"type": "number", "maximum": 1e9},
    to={"enum": ["km", "mi", "sea mile"]},
    digits={"type": "integer", "minimum": 0},
    exact={"type": "boolean"},
)
MAIL = of("to", to={"type": "string", "minLength": 1}, about={"type": ["string", "null"]})
LISTS = of(
    numbers={"type": "array", "items": {"type": "number"}},
    names={"type": "array", "items": {"type": "string"}},
    grid={"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    options={"type": "object"},
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5, km", {"amount": 5, "to": "km"}),
        ("  5.50 ,km  ", {"amount": 5.5, "to": "km"}),
        ("-.5e2, sea mile", {"amount": -50, "to": "sea mile"}),
        ('"+5", "km"', {"amount": 5, "to": "km"}),
        ("5, km, 2, TRUE", {"amount": 5, "to": "km", "digits": 2, "exact": True}),
        ("5, km, 2.0", {"amount": 5, "to": "km", "digits": 2}),
        ("5, km,, false", {"amount": 5, "to": "km", "exact": False}),
        ("5, km,", {"amount": 5, "to": "km"}),
    ],
)
def test_positional_arguments(text: str, values: dict[str, Any]) -> None:
    assert parse_arguments(text, CONVERT) == values
    assert parse_arguments(text, CONVERT, "positional") == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("amount=5, to=km", {"amount": 5, "to": "km"}),
        ('to = "km" , amount = 5', {"amount": 5, "to": "km"}),
        ("exact=false,to=sea mile,amount=5", {"amount": 5, "to": "sea mile", "exact": False}),
    ],
)
def test_named_arguments(text: str, values: dict[str, Any]) -> None:
    assert parse_arguments(text, CONVERT, "named") == values


@pytest.mark.parametrize(
    ("style", "text", "values"),
    [
        ("positional", '"Ann, or Bob", "say \\"hi\\""', {"to": "Ann, or Bob", "about": 'say "hi"'}),
        ("positional", 'Ann, 5" pipes', {"to": "Ann", "about": '5" pipes'}),
        ("positional", "Ann (or Bob, perhaps), x", {"to": "Ann (or Bob, perhaps)", "about": "x"}),
        ("positional", '"\\u005bAnn\\u005d", null', {"to": "[Ann]", "about": None}),
        ("positional", '"5", "null"', {"to": "5", "about": "null"}),
        ("positional", "5, true", {"to": "5", "about": "true"}),
        ("named", 'to="a=b, c", about=a=b', {"to": "a=b, c", "about": "a=b"}),
        ("named", 'about="", to=Ann', {"to": "Ann", "about": ""}),
    ],
)
def test_quotes_protect_and_strings_stay_strings(style: Style, text: str, values: dict[str, Any]) -> None:
    assert parse_arguments(text, MAIL, style) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("numbers=(1, 2.5), names=(a, \"b, c\", '')", {"numbers": [1, 2.5], "names": ["a", "b, c", "''"]}),
        ("numbers=(), grid=((1, 2), (), (3))", {"numbers": [], "grid": [[1, 2], [], [3]]}),
        ("numbers=[1]", {"numbers": [1]}),
        ('options={"a": (1, {"b": null}), "c": "(x"}', {"options": {"a": [1, {"b": None}], "c": "(x"}}),
        ("options={}", {"options": {}}),
        ("", {}),
    ],
)
def test_lists_and_objects(text: str, values: dict[str, Any]) -> None:
    assert parse_arguments(text, LISTS, "named") == values


@pytest.mark.parametrize("text", ["5 miles, to km", "key=value", '"quoted"', "f(x", "true", "  x  "])
def test_one_string_is_the_whole_text(text: str) -> None:
    assert parse_arguments(text, of("query", query={"type": "string"})) == {"query": text.strip()}
    optional = of("query", query={"type": "string"}, limit={"type": "integer"})
    assert parse_arguments(text, optional, "text") == {"query": text.strip()}


def test_the_only_parameter_may_be_no_string() -> None:
    assert parse_arguments("5", of(x={"type": "integer"})) == {"x": 5}
    assert parse_arguments("(1, 2)", of(x={"type": "array"})) == {"x": [1, 2]}
    assert parse_arguments("five", of(x={"type": "integer"})) == "not a whole number: x"
    assert parse_arguments("5" * 5_000, of(x={"type": "integer"})) == "too long: x"
    assert parse_arguments("x" * 50_000, of(x={"type": "string"})) == {"x": "x" * 50_000}
    assert parse_arguments("", of("x", x={"type": "string"})) == "missing argument: x"
    assert parse_arguments("", of(x={"type": "string"})) == {}


def test_a_tool_without_parameters_takes_no_input() -> None:
    assert parse_arguments("", of()) == {}
    assert parse_arguments("x", of()) == "too many arguments"
    assert parse_arguments("x", {}) == "too many arguments"


@pytest.mark.parametrize(
    ("style", "text", "reason"),
    [
        ("positional", "", "missing argument: amount"),
        ("positional", " , km", "missing argument: amount"),
        ("positional", "5", "missing argument: to"),
        ("positional", "5, km, 1, true, 9", "too many arguments"),
        ("positional", "1,250, km", "not a whole number: digits"),
        ("positional", '"1,250", km', "not a number: amount"),
        ("positional", "five, km", "not a number: amount"),
        ("positional", "5 mi, km", "not a number: amount"),
        ("positional", "nan, km", "not a number: amount"),
        ("positional", "-Infinity, km", "not a number: amount"),
        ("positional", "1e999, km", "not a number: amount"),
        ("positional", "0x10, km", "not a number: amount"),
        ("positional", "1_000, km", "not a number: amount"),
        ("positional", "\u0665, km", "not a number: amount"),  # an Arabic digit
        ("positional", "true, km", "not a number: amount"),
        ("positional", "null, km", "not a number: amount"),
        ("positional", "1e10, km", "out of range: amount"),
        ("positional", "5, KM", "not one of the choices: to"),
        ("positional", "5, km, 1.5", "not a whole number: digits"),
        ("positional", "5, km, -1", "out of range: digits"),
        ("positional", "5, km, 1, yes", "not true or false: exact"),
        ("positional", '5, "km', "misplaced quote"),
        ("positional", '5, "km" miles', "misplaced quote: to"),
        ("positional", '5, "k\\m"', "wrong escape: to"),
        ("positional", "5, (km", "unbalanced parentheses"),
        ("positional", "5, km)", "unbalanced parentheses"),
        ("positional", "(" * 900 + ")" * 900, "nested too deep"),
        ("positional", "5, " + "k" * 5_000, "too long"),
        ("named", "", "missing argument: amount"),
        ("named", "5, km", "not key=value"),
        ("named", "amount=5, km", "not key=value"),
        ("named", "amount=5,", "not key=value"),
        ("named", "=5", "not key=value"),
        ("named", '"amount"=5', "not key=value"),
        ("named", "Amount=5, to=km", "unknown argument"),
        ("named", "amount=5, to=km, secret=1", "unknown argument"),
        ("named", "amount=5, amount=6, to=km", "repeated argument: amount"),
        ("named", "amount=, to=km", "not a number: amount"),
        ("named", "amount==5, to=km", "not a number: amount"),
        ("named", 'amount="5, to=km', "misplaced quote"),
        ("text", "5", None),
    ],
)
def test_every_wrong_input_has_a_reason(style: Style, text: str, reason: str | None) -> None:
    if reason is None:
        with pytest.raises(ParametersError, match='arguments = "text" needs a tool with one parameter'):
            parse_arguments(text, CONVERT, style)
    else:
        assert parse_arguments(text, CONVERT, style) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("numbers=1", "not a list: numbers"),
        ("numbers=(1, 2]", "not a list: numbers"),
        ("numbers=(1) (2)", "unbalanced parentheses: numbers"),
        ("numbers=(1,, 2)", "not a list: numbers"),
        ("numbers=(1, two)", "not a number: numbers"),
        ("grid=(1, 2)", "not a list: grid"),
        ("options=x", "not an object: options"),
        ("options=(1)", "not an object: options"),
        ('options={"a": NaN}', "not an object: options"),
        ("options={a: 1}", "not an object: options"),
        ("options={} {}", "not an object: options"),
        ("options=" + '{"a":' * 300 + "1" + "}" * 300, "nested too deep"),
    ],
)
def test_wrong_lists_and_objects(text: str, reason: str) -> None:
    assert parse_arguments(text, LISTS, "named") == reason


def test_deep_nesting_has_a_reason_in_every_style() -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    assert parse_arguments(deep, of(x={"type": "object"})) == "nested too deep: x"
    assert parse_arguments("(" * 500 + ")" * 500, of(x={})) == {"x": "(" * 500 + ")" * 500}
    assert parse_arguments("(" * 500 + ")" * 500, of(x={"type": "array"})) == "nested too deep: x"


@pytest.mark.parametrize("name", ["filter[x]", "a b", "a,b", "a=b", "", '"', "a\nb"])
def test_names_that_are_no_keys_are_refused_for_named_arguments(name: str) -> None:
    schema = of(**{name: {"type": "string"}, "other": {}})
    with pytest.raises(ParametersError, match='write arguments = "positional"'):
        CallArguments(schema, "named")
    assert CallArguments(schema, "positional").parse("x") == {name: "x"}


@pytest.mark.parametrize(
    ("values", "schema", "style"),
    [
        ({"x": "a]b"}, of(x={"type": "string"}), "text"),
        ({"x": "a -> b"}, of(x={"type": "string"}), "text"),
        ({"x": "two\nlines"}, of(x={"type": "string"}), "text"),
        ({"x": " a"}, of(x={"type": "string"}), "text"),
        ({"x": ""}, of(x={"type": "string"}), "text"),
        ({"y": 1}, of(x={"type": "string"}), "text"),
        ({"x": 1, "y": 2}, of(x={}), "named"),
        ({"x": "b"}, of(x={"enum": ["a"]}), "named"),
        ({}, of("x", x={}), "named"),
        ({"x": float("nan")}, of(x={"type": "number"}), "named"),
        ({"x": float("inf")}, of(x={"type": "number"}), "positional"),
        ({"x": b"bytes"}, of(x={}), "positional"),
        ({"x": True}, of(x={"type": "integer"}), "positional"),
        ({"x": "y" * 5_000}, of(x={}), "positional"),
    ],
)
def test_values_that_no_call_gives_are_not_written(
    values: dict[str, Any], schema: Schema, style: Style
) -> None:
    with pytest.raises(ArgumentsError, match="in a call"):
        write_arguments(values, schema, style)


def test_written_calls_are_easy_to_read() -> None:
    assert write_arguments({"to": "km", "amount": 5}, CONVERT) == "5, km"
    assert write_arguments({"amount": 5, "to": "km", "exact": True}, CONVERT) == "5, km, , true"
    assert write_arguments({"amount": 5, "to": "sea mile"}, CONVERT, "named") == "amount=5, to=sea mile"
    assert write_arguments({"to": "Ann, Bob"}, MAIL, "named") == 'to="Ann, Bob"'
    assert write_arguments({"numbers": [1, 2]}, LISTS, "named") == "numbers=(1, 2)"


JSON_TYPES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=12)
    | st.sampled_from(["", "null", "5", "a]b", "->", "x, y", '"', "\\", "(", "a=b"]),
    "integer": st.integers(-(10**20), 10**20),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    "boolean": st.booleans(),
    "null": st.none(),
}
ANY_JSON = st.recursive(
    st.one_of(*JSON_TYPES.values()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def schemas_and_values(draw: st.DrawFn) -> tuple[Schema, dict[str, Any]]:
    properties: Schema = {}
    values: dict[str, Any] = {}
    required = []
    for name in draw(st.lists(st.sampled_from(["a", "b_2", "from", "c.d", "é"]), unique=True, max_size=4)):
        kind = draw(st.sampled_from([*JSON_TYPES, "any", "either", "array", "object", "enum"]))
        if kind in JSON_TYPES:
            properties[name], value = {"type": kind}, draw(JSON_TYPES[kind])
        elif kind == "either":
            types = draw(st.lists(st.sampled_from(list(JSON_TYPES)), min_size=1, max_size=3, unique=True))
            properties[name] = {"type": types}
            value = draw(JSON_TYPES[draw(st.sampled_from(types))])
        elif kind == "array":
            item = draw(st.sampled_from(list(JSON_TYPES)))
            properties[name] = {"type": "array", "items": {"type": item}}
            value = draw(st.lists(JSON_TYPES[item], max_size=3))
        elif kind == "object":
            properties[name] = {"type": "object"}
            value = draw(st.dictionaries(st.text(max_size=5), ANY_JSON, max_size=3))
        elif kind == "enum":
            choices = draw(st.lists(JSON_TYPES["string"], min_size=1, max_size=4, unique=True))
            properties[name], value = {"enum": choices}, draw(st.sampled_from(choices))
        else:
            properties[name], value = {}, draw(ANY_JSON)
        if draw(st.booleans()):
            values[name] = value
            if draw(st.booleans()):
                required.append(name)
    return of(*required, **properties), values


@settings(max_examples=300, deadline=None)
@given(schemas_and_values(), st.sampled_from(["positional", "named"]))
def test_what_is_written_is_read_back(case: tuple[Schema, dict[str, Any]], style: Style) -> None:
    schema, values = case
    arguments = CallArguments(schema, style)
    text = arguments.write(values)
    parsed = arguments.parse(text)
    assert parsed == values
    assert json.dumps(parsed, sort_keys=True) == json.dumps(values, sort_keys=True)  # True is not 1
    if text:
        call = linearise("Tool", text).removeprefix(" [")
        assert parse_call(call, "Tool") == text


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=40) | st.lists(st.sampled_from([*'a1,"=(){}\\ ', "null", "amount"])).map("".join),
    st.sampled_from([CONVERT, MAIL, LISTS, of(x={})]),
    st.sampled_from(["positional", "named"]),
)
def test_any_text_gives_values_or_one_of_few_reasons(text: str, schema: Schema, style: Style) -> None:
    parsed = parse_arguments(text, schema, style)
    if isinstance(parsed, str):
        names = "|".join(map(re.escape, schema["properties"]))
        assert re.fullmatch(rf"[a-zA-Z =]+(: ({names}))?", parsed)
    else:
        assert not CallArguments(schema, style).parameters.violation(parsed)


def test_a_call_that_is_parsed_gives_its_arguments() -> None:
    written = parse_call('Mail(to=Ann, about="the \\u005bold\\u005d list")] and so on', "Mail")
    assert not isinstance(written, Malformed)
    assert parse_arguments(written, MAIL, "named") == {"to": "Ann", "about": "the [old] list"}
