"""Which words of a command line are values of an option that takes several.

In: the arguments of a command line and the command's fields. Out: the same arguments with the options of
several values at the end, each once. The rules, for every command:

- An option may be given again: its values are added.
- Where a command has positional arguments (a prompt, a file), an option takes one value, and more while they
  are certainly its own: names of tools, choices, files that exist.
- An option with a number by tool takes pairs, `--tau-f Calculator 1.0`; a number before them is for every
  tool: `--tau-f 1.0`, `--tau-f 0.5 Calculator 1.0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from tools_service.base.errors import ConfigurationError
from tools_service.base.option_fields import Field, option_of, plain_type
from tools_service.base.settings import ALL

_URI_OR_GLOB = ("://", "*", "?", "[")


def separate_values(
    argv: Sequence[str],
    fields: Iterable[Field],
    tools: Collection[str],
    readers: Mapping[str, Callable[[str], str]] | None = None,
) -> list[str]:
    """`argv` with its options of several values at its end.

    `tools` are names of tools. `readers` read the values of options by the last part of the name; these
    options take one value at a time. Raises ConfigurationError for pairs that are none.
    """
    fields, readers = tuple(fields), readers or {}
    kinds = {option_of(field): plain_type(field.type)[0] for field in fields}
    positional = {plain_type(field.type)[0] for field in fields if field.is_positional}
    end = argv.index("--") if "--" in argv else len(argv)
    others: list[str] = []
    taken: dict[str, list[str]] = {}
    remaining = list(argv[:end])
    while remaining:
        option, equals, value = remaining.pop(0).partition("=")
        name = option.replace("_", "-") if option.startswith("--") else option
        kind = kinds.get(name)
        if get_origin(kind) not in (tuple, dict):
            others.append(option + equals + value)
            continue
        words = [value] if equals else []
        if get_origin(kind) is dict:
            words = _pairs(name, kind, words, remaining, alone=not positional)
        else:
            reader = readers.get(name.rpartition(".")[2].lstrip("-"))
            owns = _owner(name, kind, tools, positional, takes_one=reader is not None)
            while remaining and not _is_option(remaining[0]) and (not words or owns(remaining[0])):
                words.append(remaining.pop(0))
            words = list(map(reader, words)) if reader else words
        taken.setdefault(name, []).extend(words)
    return others + [word for name, words in taken.items() for word in (name, *words)] + list(argv[end:])


def _is_option(word: str) -> bool:
    return re.match(r"--|-[A-Za-z]", word) is not None and not _is_number(word)  # -inf is a number


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _owner(
    name: str, kind: Any, tools: Collection[str], positional: Collection[Any], *, takes_one: bool
) -> Callable[[str], bool]:
    """Whether another word is a value of the option `name` too."""
    inner = get_args(kind)[0]
    choices = plain_type(inner)[0]
    if not positional or (kind in positional and inner is not str):  # --files before more files
        return lambda word: True
    if takes_one:
        return lambda word: False
    if get_origin(choices) is Literal:
        return get_args(choices).__contains__
    if name.rpartition(".")[2].lstrip("-").startswith("tools"):
        return tools.__contains__
    return lambda word: any(sign in word for sign in _URI_OR_GLOB) or Path(word).exists()


def _pairs(name: str, kind: Any, given: Sequence[str], remaining: list[str], *, alone: bool) -> list[str]:
    """The words of an option with a value by name, taken from `remaining`: names and values in turn.

    `alone`: nothing else may follow, so that every word must be one of them.
    """
    choices = plain_type(get_args(kind)[1])[0]
    values = get_args(choices) if get_origin(choices) is Literal else None
    is_value: Callable[[str], bool] = values.__contains__ if values else _is_number
    words = list(given)
    while remaining and not _is_option(remaining[0]):
        is_whole = len(words) > 1 and is_value(words[-1])
        if is_whole and not alone and not is_value((*remaining, "")[1]):
            break
        words.append(remaining.pop(0))
    if not values and len(words) % 2 and _is_number(words[0]):
        words.insert(0, ALL)
    if not words or len(words) % 2 or not all(map(is_value, words[1::2])):
        example = f"mine {values[-1]}" if values else "Calculator 1.0"
        kinds = f"one of {', '.join(values)}" if values else "a number"
        every = "" if values else f"; {name} 1.0 is for every tool"
        raise ConfigurationError(f"{name}: give a name and {kinds}, as in {name} {example}{every}")
    return words
