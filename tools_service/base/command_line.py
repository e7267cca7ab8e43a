"""Parses a command line into configurations (tyro); a wrong value is one line that names its option.

In: a type of arguments, a dataclass that may hold configurations, and its defaults. Out: an instance.
tyro builds the configurations without a check, so that a path is still the text that was given; then
each is validated as a whole. For an option that tyro cannot read at all (an unknown name, text for a
number) it prints a box of many lines; of these, the problem and similar options are kept.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from difflib import get_close_matches
from inspect import isclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tools_service.base.errors import ConfigurationError, describe_problem
from tools_service.base.settings import Frozen, NotAnOption


class OptionError(ConfigurationError):
    """An option is unknown or its value cannot be used; the message names the option."""


def parse_command_line(arguments: Any, names: Sequence[str] = (), **options: Any) -> Any:
    """Do what `tyro.cli(arguments, **options)` does, but raise OptionError for what is wrong.

    `names` are those of the options, for suggestions.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_unchecked)
    registry.primitive_rule(_path_as_text)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed = tyro.cli(arguments, registry=registry, **options)
    except SystemExit as exit_:
        if exit_.code == 2:
            raise OptionError(_problem_in_box(said.getvalue(), names)) from exit_
        raise
    sys.stderr.write(said.getvalue())
    return _checked(parsed)


_NOT_A_NUMBER = re.compile(r"Error parsing (\S+): (invalid literal for int\(\)|could not convert).*: '(.*)'")
_STEP = r"(?:annotate|merge|finetune|generate|evaluate)\."  # before the fields of a command of several steps


def as_options(message: str, names: Sequence[str], short: Mapping[str, str]) -> str:
    """`message` with options as they are typed in the place of fields: `--model` for `model.path`."""
    typed = {name.removeprefix("--").replace("-", "_"): name for name in names if name.startswith("--")}
    typed |= {long.removeprefix("--").replace("-", "_"): name for name, long in short.items()}
    for name in tuple(typed):  # messages name a field from its own step: model.path of `generation`
        inner = re.sub(rf"^(?:generation\.|{_STEP})", "", name)
        if "." in inner or "_" in inner:
            typed.setdefault(inner, typed[name])
    # A name of one word is also a word of a sentence; it is a field where the message begins with it.
    words = {name for name in typed if re.fullmatch("[a-z]+", name)}
    parts = [
        (typed.keys() - words, r"(?<![\w./-]){}(?![\w/-]|\.[a-z])"),
        (words, r"^{}(?=:| =|\.[A-Z]| ['/])"),
    ]
    for group, pattern in parts:
        if group:
            one_of = "|".join(map(re.escape, sorted(group, key=len, reverse=True)))
            message = re.sub(pattern.format(f"(?:{one_of})"), lambda match: typed[match[0]], message)
    for name, long in (*short.items(), *_options_of_one_step(names)):
        message = re.sub(rf"(?<![\w./-]){re.escape(long)}(?![\w./-])", name, message)
    return message


def _options_of_one_step(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command of several steps that only one step has, with the name it has there."""
    steps: dict[str, list[str]] = {}
    for name in names:
        if step := re.fullmatch(rf"--{_STEP}([a-z-]+)", name):
            steps.setdefault(f"--{step[1]}", []).append(name)
    yield from ((found[0], own) for own, found in steps.items() if len(found) == 1 and own not in names)


def _problem_in_box(box: str, names: Sequence[str]) -> str:
    """The problem that tyro shows in `box`; for an unknown option, with the one that was probably meant."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split(r"^(?:─+|-+)$", "\n".join(lines), flags=re.MULTILINE)
    if "╭" not in box:  # its form without Unicode has the title above a line
        del parts[0]
    problem = " ".join(parts[0].split()).partition(" Got errors:")[0].rstrip(".")
    if unknown := re.match(r"Unrecognized (?:options|arguments): (.*)", problem):
        problem = _unknown_option(unknown[1].split(", "), names)
    elif number := _NOT_A_NUMBER.match(problem):
        kind = "a whole number" if "int()" in number[2] else "a number"
        problem = f"{number[1]}: {number[3]!r} is not {kind}"
    elif choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", problem):
        problem = f"{choice[2]}: {choice[1]!r} is none of {choice[3].replace(chr(39), '')}"
    elif unread := re.match(r"Error parsing (\S+): .*?(\[.*\]|'.*')", problem):
        values = unread[2].strip("[]")
        is_number = "INT" in problem or "FLOAT" in problem or "valid parse" in problem
        problem = f"{unread[1]}: {values} {'is not a number' if is_number else 'cannot be used'}"
    elif lacking := re.match(r"Missing from .*?: (?:(--\S+)|\S+ (.*?) ?\(required\))", problem):
        problem = f"{lacking[1] or lacking[2].rstrip('.').lower()} is missing"
    elif missing := re.match(r"Missing value for argument '(.*?)'", problem):
        problem = f"{missing[1]}: the value is missing"
    return f"{problem} (--help-all lists the options)"


def _unknown_option(given: Sequence[str], names: Sequence[str]) -> str:
    option = next((word for word in given if word.startswith("-")), None)
    if option is None:
        return f"unexpected argument{'s' if len(given) > 1 else ''} {' '.join(map(repr, given))}"
    option = option.partition("=")[0]
    similar = get_close_matches(option, names, n=2)
    # --tau-s for --method.calculator.tau-s
    similar += [name for name in names if name.endswith(f".{option.lstrip('-')}")][: 2 - len(similar)]
    meant = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return f"unknown option {option}{meant}"


def _option_problems(error: ValidationError, prefix: str) -> str:
    """The problems of `error` in one line, each with its option, which begins with `prefix`."""
    problems = []
    for problem in error.errors(include_url=False):
        names = [part for part in problem["loc"] if isinstance(part, str)]  # not the place in a list
        message = problem["msg"].removeprefix("Value error, ")
        inner = re.match(r"([a-z_]+)(?: = .*?)?(?=: )", message)
        if names and isinstance(problem["input"], Mapping) and inner:  # of a section: of a field in it
            problems.append(
                f"{prefix}{'.'.join((*names, inner[1])).replace('_', '-')}{message[inner.end(1) :]}"
            )
            continue
        problems.append(describe_problem(problem, prefix + ".".join(names).replace("_", "-")))
    return "; ".join(problems)


def _unchecked(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's rule for configurations: their fields are options, no value is checked yet."""
    if not (isclass(info.type) and issubclass(info.type, Frozen)):
        return None
    model: type[Frozen] = info.type
    hints = get_type_hints(model, include_extras=True)
    default = info.default if isinstance(info.default, Frozen) else None
    specs, hidden = [], {}
    for name, field in model.model_fields.items():
        if default is not None:
            value = getattr(default, name)
        else:
            value = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        if any(isinstance(mark, NotAnOption) for mark in field.metadata):
            hidden[name] = value
        else:
            specs.append(StructFieldSpec(name, hints[name], value, field.description))
    # The sections of the tools, each of a type of its own.
    section = get_args(hints.get("__pydantic_extra__"))
    for name, value in ((default.__pydantic_extra__ if default else None) or {}).items():
        kind = type(value) if isinstance(value, Frozen) else section[1]
        specs.append(StructFieldSpec(name, kind, value, None))
    return StructConstructorSpec(instantiate=_constructor(model, hidden), fields=tuple(specs))


def _constructor(model: type[Frozen], hidden: Mapping[str, Any]) -> Callable[..., Frozen]:
    def construct(**values: Any) -> Frozen:
        return model.model_construct(**values, **hidden)

    construct.__doc__ = model.__doc__  # tyro shows it
    construct.__name__ = construct.__qualname__ = model.__name__
    return construct


def _path_as_text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """tyro's rule for paths: the text as it was given, because Path("") is the working folder."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: isinstance(value, str | Path),
        str_from_instance=lambda path: [str(path)],
    )


def _checked(arguments: Any) -> Any:
    """`arguments` with every field validated: options of their own, and configurations."""
    hints = get_type_hints(type(arguments), include_extras=True)
    checked: dict[str, Any] = {}
    for field in fields(arguments):
        value, name = getattr(arguments, field.name), field.name.replace("_", "-")
        try:
            if isinstance(value, Frozen):
                # The options of `config` are those of the command: --k, not --config.k.
                name = "" if field.name == "config" else f"{name}."
                checked[field.name] = type(value).model_validate(value.model_dump(warnings=False))
            else:
                checked[field.name] = TypeAdapter(hints[field.name]).validate_python(value)
        except ValidationError as error:
            raise OptionError(_option_problems(error, f"--{name}")) from error
    return replace(arguments, **checked)
