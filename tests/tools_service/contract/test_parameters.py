"""Schemas of strangers: what describes parameters, what is refused, what is never fetched or run for long."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tools_service.base.errors import ConfigurationError
from tools_service.contract.parameters import Parameters, ParametersError, allowed_types, item_schema

pytestmark = pytest.mark.unit

Schema = dict[str, Any]


def of(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties}


def nested(depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return of(x=schema)


def doubling(levels: int) -> Schema:
    """A schema of 2**levels parts in a few lines."""
    parts = {
        f"a{level}": {"allOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"$ref": f"#/$defs/a{level + 1}"}]}
        for level in range(levels)
    }
    return {"$defs": {**parts, f"a{levels}": {}}, **of(x={"$ref": "#/$defs/a0"})}


def inside_itself() -> Schema:
    schema = of(x={})
    schema["properties"]["x"]["not"] = schema
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, 'type = "object"'),
        ([], 'type = "object"'),
        ("object", 'type = "object"'),
        ({"type": "string"}, 'type = "object"'),
        ({"type": ["object", "null"]}, 'type = "object"'),
        ({"properties": ["x"]}, "not a JSON schema: properties"),
        (of(x={"type": "text"}), "not a JSON schema: properties.x.type"),
        (of(x={"type": 5}), "not a JSON schema: properties.x.type"),
        (of(x={"enum": "km"}), "not a JSON schema: properties.x.enum"),
        (of(x={"minimum": "0"}), "not a JSON schema: properties.x.minimum"),
        (of(x={"anyOf": []}), "not a JSON schema: properties.x.anyOf"),
        (of(x="a string"), "not a JSON schema: properties.x"),
        ({**of(x={}), "required": "x"}, "not a JSON schema: required"),
        ({**of(x={}), "required": [5]}, "not a JSON schema: required"),
        ({**of(x={}), "required": ["y"]}, "y is required but has no schema"),
        (of(x={"$ref": "http://127.0.0.1:9/x.json"}), "never fetched"),
        (of(x={"$ref": "file:///etc/passwd"}), "never fetched"),
        (of(x={"$ref": "other.json#/x"}), "never fetched"),
        (of(x={"$ref": 5}), "never fetched"),
        (of(x={"$ref": "#/$defs/none"}), "nothing at #/$defs/none"),
        (of(x={"$ref": "#/properties/x"}), "contains itself (#/properties/x)"),
        (of(x={"items": {"$ref": "#"}}), "contains itself (#)"),
        (of(x={"$dynamicRef": "#x"}), "$dynamicRef"),
        (of(**{f"p{number}": {} for number in range(65)}), "65 of them"),
        (of(x={"anyOf": [{"type": "string"}] * 5_000}), "more than 2,000 parts"),
        (nested(5_000), "nested too deep"),
        (inside_itself(), "nested too deep"),
        (doubling(20), "more than 2,000 parts"),
        ({**of(x={}), "title\n\x1b[31m": 1, "required": ["\x1b[31m" * 1_000]}, "\\x1b[31m"),
    ],
)
def test_a_schema_that_describes_no_parameters_is_refused_in_one_line(schema: Any, message: str) -> None:
    with pytest.raises(ParametersError) as refused:
        Parameters(schema)
    assert message in str(refused.value)
    assert isinstance(refused.value, ConfigurationError)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


def test_a_remote_reference_opens_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(ParametersError, match="never fetched"):
            Parameters(of(x={"$ref": url}))
        parameters = Parameters({"$schema": url, "$id": url, **of(x={"type": "string"})})
        assert parameters.violation({"x": 5}) == "wrong value: x"
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("schema", "values", "reason"),
    [
        ({"type": "string"}, "a", None),
        ({"type": "string"}, 5, "wrong value: x"),
        ({"enum": ["km", "mi"]}, "ft", "not one of the choices: x"),
        ({"const": "km"}, "ft", "not one of the choices: x"),
        ({"type": "number", "minimum": 0}, -1, "out of range: x"),
        ({"type": "number", "exclusiveMaximum": 1}, 1, "out of range: x"),
        ({"type": "integer", "multipleOf": 5}, 7, "out of range: x"),
        ({"type": "string", "minLength": 2}, "a", "wrong length: x"),
        ({"type": "array", "maxItems": 1}, [1, 2], "wrong length: x"),
        ({"type": "array", "uniqueItems": True}, [1, 1], "wrong value: x"),
        ({"anyOf": [{"type": "integer", "maximum": 5}, {"type": "null"}]}, 7, "out of range: x"),
        ({"type": "array", "items": {"enum": ["a"]}}, ["b"], "not one of the choices: x"),
        ({"type": "string", "pattern": "^[a-z]+$"}, "abc", None),
        ({"type": "string", "pattern": "^[a-z]+$"}, "Abc", "wrong value: x"),
        ({"type": "string", "pattern": "b"}, "abc", None),
        ({"type": "string", "pattern": r"^\p{Lu}"}, "École", None),
        # An exponential pattern for engines with backtracking.
        ({"type": "string", "pattern": "^(a+)+$"}, "a" * 4_000 + "b", "wrong value: x"),
        # The tool checks what is not checked here.
        ({"type": "string", "pattern": "^(?!a)"}, "abc", None),
        ({"type": "string", "pattern": "("}, "abc", None),
        ({"type": "string", "pattern": "(a{999}){999}"}, "abc", None),
        ({"type": "string", "format": "date"}, "yesterday", None),
        ({"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}, {"a" * 99 + "b": 1}, None),
        ({"type": "number", "multipleOf": 0.1}, 10**400, "arguments cannot be checked"),
        (True, "anything", None),
        (False, "anything", "wrong arguments"),
    ],
)
def test_a_violation_is_a_kind_and_a_name(schema: Any, values: Any, reason: str | None) -> None:
    assert Parameters(of(x=schema)).violation({"x": values}) == reason


def test_rules_about_the_whole_object_concern_no_parameter() -> None:
    schema = of(city={"type": "string"}, zip={"type": "string"})
    either = Parameters({**schema, "anyOf": [{"required": ["city"]}, {"required": ["zip"]}]})
    assert either.violation({}) == "wrong arguments"
    assert either.violation({"zip": "1"}) is None
    assert Parameters({**schema, "required": ["zip"]}).violation({}) == "missing argument: zip"


def test_long_names_are_cut_in_reasons() -> None:
    name = "n" * 10_000 + "\n"
    reason = Parameters(of(**{name: {"type": "string"}})).violation({name: 5})
    assert reason is not None
    assert len(reason) < 90


def test_references_are_put_in_their_place() -> None:
    unit = {"enum": ["km", "mi"], "description": "A unit."}
    schema = of(
        to={"$ref": "#/$defs/Unit", "description": "The unit of the result.", "default": "km"},
        **{"from": {"allOf": [{"$ref": "#/$defs/a~1b%20c"}], "maxLength": 2}},
        list={"type": "array", "items": {"$ref": "#/properties/to"}},
        **{"$ref": {"type": "string"}},  # a parameter may have this name
    )
    parameters = Parameters({**schema, "$defs": {"Unit": unit, "a/b c": unit}})
    assert parameters.properties["to"] == {
        "enum": ["km", "mi"],
        "description": "The unit of the result.",
        "default": "km",
    }
    assert list(parameters.properties) == ["to", "from", "list", "$ref"]
    assert parameters.violation({"list": ["km", "ft"]}) == "not one of the choices: list"
    assert parameters.violation({"from": "ft"}) == "not one of the choices: from"


def test_both_sides_of_a_reference_count() -> None:
    schema = of(x={"$ref": "#/$defs/Short", "maxLength": 1})
    parameters = Parameters({**schema, "$defs": {"Short": {"type": "string", "maxLength": 3}}})
    assert parameters.violation({"x": "ab"}) == "wrong length: x"


@pytest.mark.parametrize(
    ("draft", "schema", "value"),
    [
        ("http://json-schema.org/draft-03/schema#", {"type": "string"}, 5),
        ("http://json-schema.org/draft-04/schema#", {"minimum": 5, "exclusiveMinimum": True}, 5),
        ("http://json-schema.org/draft-07/schema#", {"items": [{"type": "string"}]}, [5]),
        ("https://json-schema.org/draft/2020-12/schema", {"prefixItems": [{"type": "string"}]}, [5]),
        ("https://example.com/unknown", {"type": "string"}, 5),
        (5, {"type": "string"}, 5),
    ],
)
def test_every_draft_is_read_as_its_own(draft: Any, schema: Schema, value: Any) -> None:
    assert Parameters({"$schema": draft, **of(x=schema)}).violation({"x": value}) is not None


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "number", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": "integer"}]}, {"integer"}),
        ({"oneOf": [{"enum": ["a"]}, True], "type": "string"}, {"string"}),
        (False, set()),
    ],
)
def test_types_that_a_schema_allows(schema: Any, types: set[str]) -> None:
    assert allowed_types(schema) == types


def test_the_schema_of_an_item() -> None:
    either = {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    assert item_schema(either, 3) == {"type": "integer"}
    assert item_schema({"prefixItems": [{}, {"const": 1}], "items": {"const": 2}}, 1) == {"const": 1}
    assert item_schema({"prefixItems": [{}], "items": {"const": 2}}, 1) == {"const": 2}
    assert item_schema({"items": [{"const": 1}]}, 0) == {"const": 1}
    assert item_schema({"type": "array"}, 0) is True
