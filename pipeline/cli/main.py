"""The command line, `toolformer COMMAND` or `python -m pipeline COMMAND` (tyro).

A command starts from a recipe (`--recipe`), and every field of its configuration is an option with
the field's name, with dots for nesting. Results go to standard output, progress and logs to
standard error. commands.py has the table of commands, handlers.py what they do.

Exit codes: 0 done; 1 the run failed; 2 the command line, the configuration or an input it names is
wrong; 3 annotate has stopped because its budget (--max-hours, --max-gpu-hours) is used up; 130
interrupted. The project's own errors are printed as one message without a traceback. Any other exception
is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from pipeline.cli.arguments import DEFAULT_RECIPE, Arguments, ToolsArguments
from pipeline.cli.commands import COMMANDS
from pipeline.cli.completion import SUMMARY as COMPLETION_SUMMARY
from pipeline.cli.completion import print_completion
from pipeline.cli.demo_files import require_demo_files
from pipeline.cli.devices import look_for_cluster, require_devices
from pipeline.cli.doctor.run import SUMMARY, doctor
from pipeline.cli.generating.prompts import unescape
from pipeline.cli.missing_inputs import require_inputs
from pipeline.cli.output_folders import with_own_output
from pipeline.cli.recipes import RECIPES, RecipeName
from pipeline.cli.run_file import RunFile, written_as_file
from pipeline.cli.settings_file import SettingsFileError
from pipeline.storage.logs import PACKAGES
from tools_service.base.command_line import as_options, parse_command_line
from tools_service.base.cpus import limit_threads
from tools_service.base.errors import ToolformerError
from tools_service.base.help_text import CommandHelp, show_help, unknown_command
from tools_service.base.option_fields import Field, argument_fields, nested_fields, option_names, option_of
from tools_service.base.option_values import separate_values
from tools_service.base.options import current_options
from tools_service.base.standard_streams import run_command
from tools_service.base.version import __version__
from tools_service.tools_file import tools_file_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (None: that of this process); return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = " ".join((_program(), *argv[:1]))
    return run_command(lambda: _dispatch(argv), name)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    name, *options = argv
    if name in ("--version", "-V"):
        print(f"toolformer {__version__}")
        return 0
    if name == "doctor":
        return doctor(options, _program())
    if name == "completion":
        return print_completion(options, f"{_program()} completion", _words())
    if name not in COMMANDS:
        print(f"{_program()}: {unknown_command(name, (*COMMANDS, 'doctor', 'completion'))}", file=sys.stderr)
        return 2
    formatter = _set_up_logging()
    limit_threads()
    return _run(name, options, formatter)


def _words() -> dict[str, list[Field]]:
    """The options of each command, with the default recipe's values."""
    recipe = RECIPES[DEFAULT_RECIPE]()
    words: dict[str, list[Field]] = {"doctor": [], "completion": []}
    for name, command in COMMANDS.items():
        fields = list(nested_fields(argument_fields(command.arguments(config=command.config(recipe)))))
        named = {option_of(field): field for field in fields}
        short = [replace(named[long], name=name.removeprefix("--")) for name, long in command.short.items()]
        words[name] = [*short, *fields]
    return words


def _run(name: str, options: Sequence[str], formatter: _OptionsFormatter) -> int:
    try:
        arguments = parse(name, options)
        formatter.command = name
        if arguments.print_config:
            print(written_as_file(name, arguments), end="")
            return 0
        if arguments.dry_run:
            from pipeline.cli.dry_running.run import dry_run

            dry_run(arguments, _program())
            return 0
        require_demo_files(arguments, _program())
        require_inputs(arguments)
        require_devices(arguments.config)
        look_for_cluster(arguments.config)
        COMMANDS[name].run(arguments)
    except ToolformerError as error:
        is_of_file = isinstance(error, SettingsFileError)  # its fields are not options
        message = str(error) if is_of_file else _as_options(str(error), name)
        print(f"{_program()} {name}: {message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _as_options(message: str, name: str) -> str:
    """`message` with the options of command `name` in the place of fields."""
    return as_options(message, _option_names(name), COMMANDS[name].short)


@cache
def _option_names(name: str) -> tuple[str, ...]:
    command = COMMANDS[name]
    return tuple(option_names(command.arguments(config=command.config(RECIPES[DEFAULT_RECIPE]()))))


def parse(name: str, argv: Sequence[str]) -> Arguments[Any]:
    """The typed arguments of command `name`. Raises OptionError."""
    command = COMMANDS[name]
    argv = [_expand(argument, command.short) for argument in current_options(argv)]
    file = RunFile.of(argv, {name: command.arguments for name, command in COMMANDS.items()})
    recipe = _recipe_of(argv, file.recipe or DEFAULT_RECIPE)
    options = file.options(name)
    tools_file = file.tools_file
    if issubclass(get_origin(command.arguments) or command.arguments, ToolsArguments):
        options["tools_file"] = tools_file = tools_file_of(argv) or tools_file
    config = file.configuration(name, command.config, recipe, tools_file)
    default = command.arguments(recipe=recipe, config=config, **options)
    show_help(argv, help_of(name, default))
    fields = nested_fields(argument_fields(default))
    argv = separate_values(argv, fields, _tools_of(config), {"stop": unescape})
    arguments: Arguments[Any] = parse_command_line(
        command.arguments, (*command.short, *option_names(default)), args=argv, default=default
    )
    own = command.config(RECIPES[recipe]())
    is_given = file.gives_output(name) or any(option.split("=")[0] == "--output" for option in argv)
    config = with_own_output(arguments.configuration, own, recipe, is_given=is_given)
    return replace(arguments, config=config)


def _program() -> str:
    """The name this process was started by, for help and messages."""
    name = Path(sys.argv[0]).stem
    return name if name == "toolformer" else "python -m pipeline"


def _recipe_of(argv: Sequence[str], default: RecipeName) -> RecipeName:
    """The recipe named in `argv`; the default for an unknown name, which tyro then refuses."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    name = parser.parse_known_args(argv)[0].recipe
    return name if name in RECIPES else default


def _expand(argument: str, short: Mapping[str, str]) -> str:
    """Replace a short form by the full name of its field: --corpus=x → --corpus.paths=x."""
    option, equals, value = argument.partition("=")
    return short.get(option, option) + equals + value


def _tools_of(config: Any) -> Collection[str]:
    """The names of the tools that there are for a command."""
    config = getattr(config, "generation", config)
    return config.tools.specs if hasattr(config, "tools") else ()


def help_of(name: str, arguments: Arguments[Any]) -> CommandHelp:
    """The help of a command whose defaults are `arguments`."""
    command = COMMANDS[name]
    return CommandHelp(
        program=f"{_program()} {name}",
        summary=command.run.__doc__ or "",
        examples=command.examples,
        fields=tuple(nested_fields(argument_fields(arguments))),
        main=("--recipe", *command.main.split(), "--config", "--dry-run"),
        short=command.short,
    )


class _OptionsFormatter(logging.Formatter):
    """Shows warnings as errors are shown: with options in the place of fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self.command: str | None = None
        """None until the command line is read, which loads the tools that some options are for."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if self.command and record.levelno >= logging.WARNING and record.name.split(".")[0] in PACKAGES:
            record.message = _as_options(record.message, self.command)
        return super().formatMessage(record)


def _set_up_logging() -> _OptionsFormatter:
    """Show our own records from INFO on, those of other packages from WARNING on."""
    handler = logging.StreamHandler()
    formatter = _OptionsFormatter()
    handler.setFormatter(formatter)
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in PACKAGES
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    return formatter


def _overview() -> str:
    program, width = _program(), max(map(len, COMMANDS))
    commands = (f"  {name:<{width}}  {command.run.__doc__}\n" for name, command in COMMANDS.items())
    return (
        f"usage: {program} COMMAND [--recipe {{{','.join(RECIPES)}}}] [OPTIONS]\n\n"
        "Language models that teach themselves to use tools (Toolformer, arXiv 2302.04761) on Ray.\n\n"
        f"{''.join(commands)}  {'doctor':<{width}}  {SUMMARY}\n"
        f"  {'completion':<{width}}  {COMPLETION_SUMMARY}\n\n"
        f"Start with `{program} demo`; `{program} COMMAND --help` shows a command's main options, "
        "--help-all every one.\n"
        "Exit codes: 0 done, 1 the run failed, 2 wrong command line or configuration, 3 budget used up, "
        "130 interrupted."
    )
