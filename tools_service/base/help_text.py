"""Help texts: one screen with the options that people need (`--help`), or every option (`--help-all`).

In: fields of a command's arguments (option_fields.py). Out: text. What all tools have is described once, with
`TOOL` for the name of a tool. tyro's own help, which command_line.py replaces, repeats it for each tool.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tyro

from tools_service.base.option_fields import TOOL, Field, plain_type

HELP = ("-h", "--help")
HELP_ALL = "--help-all"
_LEFT = 30  # columns for the name of an option
_MAX_WIDTH = 100
_MAX_CHOICES = 34  # characters of a list of choices beside the name of an option
_NO_PAIR = get_args(tyro.conf.FlagCreatePairsOff[bool])[1:]
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}

Options = Mapping[str, Sequence[Field]]


@dataclass(frozen=True, kw_only=True)
class CommandHelp:
    """What the help of a command says."""

    program: str
    """The command as it is typed: `toolformer merge`."""
    summary: str
    examples: Sequence[str]  # without the program
    fields: Sequence[Field]
    main: Sequence[str] = ()
    """The options on the first screen, as they are typed; positional arguments in capitals."""
    short: Mapping[str, str] | None = None
    """Short forms of options: --model for --model.path."""

    def screen(self) -> str:
        """The main options, with the first sentence of each help text."""
        options, short = grouped(self.fields), self.short or {}
        lines = [*self._head(), "Options:"]
        for name in self.main:
            lines += _entry(name, options[short.get(name, name)], whole=False)
        lines += ["", "Examples:", *self._examples(3)]
        lines += ["", f"`{self.program} {HELP_ALL}` lists all {len(options)} options."]
        return "\n".join(lines)

    def everything(self) -> str:
        """Every option with its whole help text, by section."""
        short = {long: name for name, long in (self.short or {}).items()}
        sections: dict[str, list[str]] = {"": []}
        for name, fields in grouped(self.fields).items():
            section = name.lstrip("-").rpartition(".")[0]
            shown = f"{short[name]}, {name}" if name in short else name
            sections.setdefault(section, []).extend(_entry(shown, fields, whole=True))
        lines = [*self._head(), "Examples:", *self._examples(None)]
        for section, entries in sections.items():
            lines += ["", f"Options of {section}:" if section else "Options:", *entries]
        if tools := dict.fromkeys(field.tool for field in self.fields if field.tool is not None):
            lines += ["", f"{TOOL} stands for a tool: {', '.join(tools)}."]
        return "\n".join(lines)

    def _head(self) -> list[str]:
        positional = [field for field in self.fields if field.is_positional]
        arguments = "".join(f" [{_shown(field.pattern.upper(), field)}]" for field in positional)
        summary = textwrap.wrap(self.summary, _width())
        return [f"usage: {self.program}{arguments} [OPTIONS]", "", *summary, ""]

    def _examples(self, number: int | None) -> list[str]:
        return [f"  {self.program} {example}".rstrip() for example in self.examples[:number]]


def show_help(argv: Sequence[str], text: CommandHelp) -> None:
    """Print the help that `argv` asks for, and end the process; do nothing if it asks for none."""
    asked = argv[: argv.index("--")] if "--" in argv else argv
    if HELP_ALL in asked:
        print(text.everything())
    elif any(option in HELP for option in asked):
        print(text.screen())
    else:
        return
    raise SystemExit(0)


def unknown_command(name: str, commands: Iterable[str]) -> str:
    """A sentence about a word that is not one of `commands`."""
    if name.startswith("-"):
        return f"{name} stands before the command; give the command first (--help lists them)"
    similar = get_close_matches(name.lower(), tuple(commands), n=1)
    meant = f"; did you mean {similar[0]}?" if similar else ""
    return f"unknown command {name!r}{meant} (--help lists the commands)"


def grouped(fields: Iterable[Field]) -> Options:
    """The fields of each option, by its name on the command line; an option of all tools is one."""
    options: dict[str, list[Field]] = {}
    for field in fields:
        if field.is_option:
            options.setdefault(option_name(field), []).append(field)
    return options


def option_name(field: Field) -> str:
    """--corpus.max-tokens, --method.TOOL.tau-s; PROMPTS for a positional argument."""
    return field.pattern.upper() if field.is_positional else f"--{field.pattern.replace('_', '-')}"


def _entry(name: str, fields: Sequence[Field], *, whole: bool) -> list[str]:
    """The lines of an option."""
    first = fields[0]
    text = " ".join(first.help.split())
    if not whole:
        text = _first_sentence(text)
    if default := _default(fields):
        text = f"{text} [{default}]"
    left = f"  {_shown(name, first)}"
    lines = textwrap.wrap(text, _width() - _LEFT, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) >= _LEFT:
        return [left, *(" " * _LEFT + line for line in lines)]
    return [f"{left:<{_LEFT}}{lines[0]}", *(" " * _LEFT + line for line in lines[1:])]


def _shown(name: str, field: Field) -> str:
    """The option with what follows it."""
    kind, marks = plain_type(field.type)
    if kind is bool:
        section, dot, last = name.rpartition(".")
        if any(mark in _NO_PAIR for mark in marks):
            return name
        return f"{section}{dot}[no-]{last}" if dot else f"--[no-]{name.removeprefix('--')}"
    if field.is_positional:
        return f"{name} ..." if get_origin(kind) is tuple else name
    return f"{name} {_metavar(kind)}"


def _metavar(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        choices = "{" + ",".join(str(choice) for choice in get_args(kind)) + "}"
        return choices if len(choices) <= _MAX_CHOICES else "NAME"
    if origin is tuple:
        inner = _metavar(plain_type(get_args(kind)[0])[0])
        return f"{inner} ..."
    if origin is dict:
        return f"NAME {_metavar(plain_type(get_args(kind)[1])[0])} ..."
    return _METAVARS.get(kind, "VALUE")


def _default(fields: Sequence[Field]) -> str:
    """The default; where tools differ, that of each tool."""
    values = {field.tool: _value(field.value) for field in fields}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    tools: dict[str, list[str]] = {}
    for tool, value in values.items():
        tools.setdefault(value or "none", []).append(str(tool))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in tools.items())


def _value(value: Any) -> str:
    if value is tyro.MISSING or value is False or value in (..., None, (), {}):
        return ""
    if value is True:
        return "yes"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, Mapping):
        return " ".join(f"{name} {item}" for name, item in value.items())
    return str(value).replace("\n", "\\n")


def _first_sentence(text: str) -> str:
    """Up to the first full stop with a new sentence behind it."""
    sentence = re.match(r"(.*?)\.(?= [A-Z]|$)", text)
    return sentence[1] if sentence else text


def _width() -> int:
    return min(_MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns)
