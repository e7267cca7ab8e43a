"""python -m pipeline COMMAND: the method on the command line (tyro over the models of config.py).

A command starts from a recipe (`--recipe`), and every field of its configuration is an option called by its
name, dots for nesting. Results go to standard output, progress and logs to standard error. What the
commands do is in commands.py.

Exit codes: 0 done; 1 the run failed; 2 the command line, the configuration or an input it names is wrong;
130 interrupted. Errors of the project's own types are one message without a traceback; anything else is a
bug and shows one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any, get_origin

import tyro

from pipeline.cli.commands import COMMANDS, DEFAULT_RECIPE, Arguments, ToolsArguments
from pipeline.cli.recipes import RECIPES, RecipeName
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.tools_file import tools_file_of, with_tools_file

OUR_PACKAGES = ("pipeline", "tools_service")


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"python -m pipeline: unknown command {argv[0]!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    command = COMMANDS[argv[0]]
    _log()
    try:
        command.run(parse(argv[0], argv[1:]))
    except ToolformerError as error:
        print(f"python -m pipeline {argv[0]}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def parse(name: str, argv: Sequence[str]) -> Arguments[Any]:
    """The typed arguments of command `name`; a wrong command line exits with code 2 and a message."""
    command = COMMANDS[name]
    argv = [_expand(argument, command.short) for argument in argv]
    recipe = _recipe_of(argv)
    config = command.config(RECIPES[recipe]())
    if issubclass(get_origin(command.arguments) or command.arguments, ToolsArguments):
        config = with_tools_file(config, tools_file_of(argv))
    default = command.arguments(recipe=recipe, config=config)
    return tyro.cli(
        command.arguments,
        prog=f"python -m pipeline {name}",
        description=_describe(name),
        args=argv,
        default=default,
    )


def _recipe_of(argv: Sequence[str]) -> RecipeName:
    """The recipe named in `argv`. An unknown name gives the default here: the full parser then refuses it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    name = parser.parse_known_args(argv)[0].recipe
    return name if name in RECIPES else DEFAULT_RECIPE


def _expand(argument: str, short: dict[str, str]) -> str:
    """A short form becomes the full name of its field: --corpus=x → --corpus.paths=x."""
    option, equals, value = argument.partition("=")
    return short.get(option, option) + equals + value


def _describe(name: str) -> str:
    command = COMMANDS[name]
    lines = [command.summary, "", "Examples:"]
    lines += [f"  python -m pipeline {name} {example}".rstrip() for example in command.examples]
    if command.short:
        lines += ["", "Short forms: " + ", ".join(f"{a} for {b}" for a, b in command.short.items())]
    return "\n".join(lines)


def _log() -> None:
    """Ours from INFO on, other packages' from WARNING on, whatever levels these set themselves."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in OUR_PACKAGES
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [--recipe {" + ",".join(RECIPES) + "}] [OPTIONS]",
            "",
            "Language models that teach themselves to use tools (Toolformer, arXiv 2302.04761) on Ray.",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "Start with `python -m pipeline demo`; `python -m pipeline COMMAND --help` lists every option.",
            "Exit codes: 0 done, 1 the run failed, 2 wrong command line or configuration, 130 interrupted.",
        ]
    )
