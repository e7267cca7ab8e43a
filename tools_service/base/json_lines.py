"""The value of a line of JSON, within bounds of memory and depth.

In: a line. Out: its value as `json` gives it: of equal keys the last counts, and NaN and Infinity
are numbers. What the fields mean is the caller's matter.
"""

from __future__ import annotations

import json
from typing import Any

WANTED = (
    "JSON lines are wanted, one object a line: convert an array with jq -c '.[]' IN > OUT.jsonl, "
    "other JSON with jq -c . IN > OUT.jsonl"
)

# Parsed, each value takes up to 72 bytes. Shorter lines cannot have more.
_MAX_VALUES = 8 * 2**20


def parse_json(text: str) -> Any:
    """Return the value of `text`. Raises ValueError if it is no JSON, or too large or deep to hold."""
    if len(text) > _MAX_VALUES and sum(map(text.count, "[{,")) > _MAX_VALUES:
        raise ValueError(f"not JSON: too many values, more than {_MAX_VALUES:,}")
    text = text.removeprefix("\ufeff")  # of a file that begins within another
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON: nested too deep") from error


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of over 4,300 digits, which Python refuses
        return json.loads(text, parse_int=float)


def begins_long_value(line: str, next_line: str) -> bool:
    """Whether a value begins in `line`, the first of a file, that goes over several lines."""
    begins = line.strip("\ufeff \t\r")
    is_open = begins in ("{", "[", "[{") or (begins[:1] == "[" and begins[-1:] == ",")
    return is_open and not isinstance(_value(next_line), dict)


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
