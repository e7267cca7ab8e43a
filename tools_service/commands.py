"""python -m tools_service COMMAND: the tools by hand.

    call TOOL TEXT     ask a tool; exit code 0 with a result, 1 with the reason on standard error
    call TOOL --json   a JSON string per line in, an object with result and reason per line out, in order
    index              build WikiSearch's index
    prompt TOOL        draft the annotation prompt of a tool from examples, or check a prompt file
    serve              run the tools on Ray until interrupted; with --http also over HTTP,
               with --mcp as an MCP server

Every option can also stand in one TOML file, --tools-file (cluster/tools.toml is an example).

Exit codes: 0 done, 1 no result or no start, 2 wrong command line or configuration, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from pydantic import Field

from tools_service.base.command_line import parse_command_line
from tools_service.base.cpus import limit_threads
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.help_text import HELP, CommandHelp, show_help, unknown_command
from tools_service.base.option_fields import argument_fields, nested_fields, option_names
from tools_service.base.option_values import separate_values
from tools_service.base.options import current_options
from tools_service.base.settings import FilePath, IsoDate, NotNegativeInt, Text
from tools_service.base.standard_streams import run_command, standard_input
from tools_service.base.version import __version__
from tools_service.config import HttpConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.prompting import Prompt, prompt
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import require_available
from tools_service.tools_file import tools_file_of, with_tools_file

PROGRAM = "python -m tools_service"
_EXAMPLES = {
    "call": (
        "Calculator '(27 + 4) * 2'",
        "MT 'Der Hund schläft heute im Garten.' --tools-file demo/tools.toml",
        "Calculator --json < expressions.jsonl",
    ),
    "index": ("--source wiki.jsonl --index runs/index", "--source 'wiki/*.jsonl' --workers 8"),
    "prompt": (
        "PriceList --from examples.jsonl --output prices.txt",
        "Calculator --check prompts/calculator.txt",
    ),
    "serve": ("--tools Calculator Calendar", "--tools-file cluster/tools.toml --http", "--mcp"),
}
# The options that people need: what --help shows.
_MAIN = {
    "call": "TOOL TEXT --json --date --tools-file",
    "index": "--source --index --workers --retriever --tools-file",
    "prompt": "TOOL --from --examples --output --check --model --tools-file",
    "serve": "--tools --address --http --mcp --http.host --http.port --http.token-file --tools-file",
}

Config = Annotated[ToolsConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Call:
    """Ask a tool in this process."""

    tool: tyro.conf.Positional[str]
    """The tool."""
    text: tyro.conf.Positional[str | None] = None
    """The text between the parentheses of the call."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read a JSON string per line from standard input; print an object per line: result, reason."""
    date: IsoDate | None = None
    """The calendar's day, YYYY-MM-DD; None is today."""
    tools_file: FilePath | None = None
    """TOML file with the configuration of the tools."""
    config: Config


@dataclass(frozen=True, kw_only=True)
class Index:
    """Build the index of --source in the folder --index, also if there is one."""

    workers: NotNegativeInt | None = None
    """Processes on Ray (RAY_ADDRESS, or this machine); 0 uses none; None decides by the size."""
    tools_file: FilePath | None = None
    """TOML file with the configuration of the tools; only its section wikisearch counts."""
    config: Annotated[WikiSearchConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Run tools on Ray Serve until interrupted."""

    tools: Annotated[tuple[str, ...], Field(min_length=1)] = PACKAGED
    """The tools to run."""
    address: Text | None = None
    """Cluster to join (auto, ray://...); None starts a local one unless RAY_ADDRESS is set."""
    http: HttpConfig = field(default_factory=HttpConfig)
    over_http: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(name="http")] = False
    """Answer HTTP as well: POST /TOOL with a JSON list; see docs/tools.md."""
    mcp: tyro.conf.FlagCreatePairsOff[bool] = False
    """Be an MCP server, on standard input and output, or with --http at /mcp."""
    tools_file: FilePath | None = None
    """TOML file with the configuration of the tools."""
    config: Config


def call(arguments: Call) -> int:
    """Answer a call, or with --json a call per line of standard input; return the exit code."""
    if arguments.json == (arguments.text is not None):
        raise ConfigurationError("call: give the text of one call, or --json and the texts on standard input")
    require_available([arguments.tool], arguments.config, field="TOOL", can_be_left_out=False)
    client = start_local_tools(arguments.config, [arguments.tool])
    if arguments.json:
        for answer in answers(client, arguments.tool, arguments.date, standard_input()):
            print(json.dumps({"result": answer.result, "reason": answer.reason}), flush=True)
        return 0
    answer = client.call(arguments.tool, [ToolInput(arguments.text or "", arguments.date)])[0]
    if answer.result is None:
        print(f"no result: {answer.reason}", file=sys.stderr)
        return 1
    print(answer.result)
    return 0


def answers(client: ToolClient, tool: str, date: str | None, lines: Iterable[bytes]) -> Iterator[ToolResult]:
    """Yield an answer for each line, as soon as the line is there."""
    for line in lines:
        try:
            text = json.loads(line)
        except (ValueError, RecursionError):
            text = None
        if isinstance(text, str):
            yield client.call(tool, [ToolInput(text, date)])[0]
        else:
            yield ToolResult(reason="not a JSON string")


def index(arguments: Index) -> int:
    """Build the index and print its manifest."""
    from tools_service.indexing.build import build_index
    from tools_service.indexing.losses import index_losses

    if not arguments.config.source:
        raise ConfigurationError("--source: name the files or folders to index")
    manifest = build_index(arguments.config, workers=arguments.workers)
    print(json.dumps({"index": str(arguments.config.index), **manifest}, indent=2))
    for sentence in index_losses(manifest):
        print(f"! {sentence}", file=sys.stderr)
    return 0


def serve(arguments: Serve) -> int:
    """Run the tools until an interrupt."""
    require_available(arguments.tools, arguments.config, field="--tools")

    from tools_service.serving.serve import serve  # imports Ray, which takes seconds

    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools_service").setLevel(logging.INFO)
    http = arguments.http if arguments.over_http else None
    serve(arguments.config, arguments.tools, arguments.address, http, arguments.mcp)
    return 0


def parse(argv: Sequence[str]) -> Call | Index | Prompt | Serve:
    """Return the typed arguments; the values of --tools-file are their defaults."""
    config = ToolsConfig().at_inference()
    argv = current_options(argv)
    config = with_tools_file(config, tools_file_of(argv))
    defaults: dict[str, Any] = {
        "call": Call(tool=tyro.MISSING, config=config),
        "index": Index(config=_indexed_section(config)),
        "prompt": Prompt(tool=tyro.MISSING, config=config),
        "serve": Serve(config=config),
    }
    name, *options = argv or ("",)
    if name not in defaults:
        raise ConfigurationError(unknown_command(name, defaults) if name else "name a command (--help)")
    command = defaults[name]
    show_help(options, help_of(name, command))
    options = separate_values(options, nested_fields(argument_fields(command)), config.specs)
    parsed: Call | Index | Prompt | Serve = parse_command_line(
        type(command), option_names(command), args=options, default=command
    )
    return parsed


def help_of(name: str, arguments: Any) -> CommandHelp:
    """The help of a command whose defaults are `arguments`."""
    return CommandHelp(
        program=f"{PROGRAM} {name}",
        summary=(type(arguments).__doc__ or "").partition("\n\n")[0],
        examples=_EXAMPLES[name],
        fields=tuple(nested_fields(argument_fields(arguments))),
        main=_MAIN[name].split(),
    )


def _with_options(message: str, command: str) -> str:
    """`message` with options in the place of fields: --qa.model for tools.qa.model; --source of index."""
    section = r"\w+\." if command == "index" else ""
    field = rf"(?<![\w./-])tools\.{section}([a-z_]+(?:\.[a-z_]+)*)"
    return re.sub(field, lambda match: f"--{match[1].replace('_', '-')}", message)


def _indexed_section(config: ToolsConfig) -> WikiSearchConfig:
    """The settings of the first tool with an index."""
    sections = map(config.of, config.specs)
    return next(section for section in sections if isinstance(section, WikiSearchConfig))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show must not end a call
            stream.reconfigure(errors="backslashreplace")
    limit_threads()
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv), "python -m tools_service")


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in (*HELP, "help"):
        print(__doc__.strip())
        return 0 if argv else 2
    if argv[0] in ("--version", "-V"):
        print(f"toolformer {__version__}")
        return 0
    try:
        arguments = parse(argv)
        if isinstance(arguments, Call):
            return call(arguments)
        if isinstance(arguments, Prompt):
            return prompt(arguments)
        return index(arguments) if isinstance(arguments, Index) else serve(arguments)
    except ToolformerError as error:
        print(f"{PROGRAM}: {_with_options(str(error), argv[0])}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("python -m tools_service: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
