"""Lines of JSON that are at the edge of what a parser takes."""

from __future__ import annotations

import pytest

from tools_service.base.json_lines import begins_long_value, parse_json

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 4_301,
        "-" + "9" * 9_000,
        '"\\ud800"',
        "[" * 50 + "]" * 50,
    ],
)
def test_an_odd_value_leaves_its_neighbours(value: str) -> None:
    assert parse_json(f'\ufeff{{"odd": {value}, "text": "x"}}')["text"] == "x"


def test_of_equal_keys_the_last_counts() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" + "[]," * (3 * 2**20) + "{}," * (2 * 2**20) + "1]", "too many values"),
        ("{", "Expecting property name"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": 1} {"b": 2}', "Extra data"),
        ('{"a": "\0"}', "Invalid control character"),
        ("", "Expecting value"),
        ("undefined", "Expecting value"),
        ("+1", "Expecting value"),
        ("01", "Extra data"),
        ('{"a": 1,}', ""),
    ],
)
def test_what_is_no_json_has_a_reason(line: str, reason: str) -> None:
    with pytest.raises(
        ValueError, match=f"^not JSON: .*{reason}" if "Illegal" not in reason else "^not JSON: "
    ):
        parse_json(line)


@pytest.mark.parametrize(
    ("line", "next_line", "expected"),
    [
        ("{", '"text": "x"', True),
        ("[", '{"text": "x"},', True),
        ("[", "{", True),
        ('[{"text": "x"},', ' {"text": "y"}]', True),
        ("\ufeff{ ", "}", True),
        ("{", '{"text": "one broken line"}', False),
        ("{broken", "[1]", False),
        ("[1,", '{"text": "one broken line"}', False),
        ('{"text": "x"}', "{", False),
        ("[1]", "[2]", False),
        ("plain", "text", False),
    ],
)
def test_a_value_over_several_lines_is_told_from_a_broken_line(
    line: str, next_line: str, expected: bool
) -> None:
    assert begins_long_value(line, next_line) == expected
