"""python -m tools_service COMMAND: the tools by hand.

    call TOOL TEXT     ask one tool; exit code 0 with a result, 1 with the reason on standard error
    call TOOL --json   one JSON string a line in, one object with result and reason a line out, in order
    index              build WikiSearch's index
    serve              run the tools on Ray until interrupted

Exit code 2: the command line or the configuration is wrong.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipeline.errors import ConfigurationError, PipelineError
from pipeline.records import ToolName
from tools_service.client import LocalTools, ToolClient, application
from tools_service.config import CalendarConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract import ToolInput, ToolResult
from tools_service.toolbox import AVAILABLE, prepare, require_available

Config = Annotated[ToolsConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Call:
    """Ask one tool in this process."""

    tool: tyro.conf.Positional[ToolName]
    """The tool."""
    text: tyro.conf.Positional[str | None] = None
    """What stands between the parentheses of the call."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read one JSON string a line from standard input; print one object a line: result, reason."""
    date: str | None = None
    """The calendar's day, YYYY-MM-DD; None is today."""
    config: Config = field(default_factory=lambda: ToolsConfig(calendar=CalendarConfig(today=True)))


@dataclass(frozen=True, kw_only=True)
class Index:
    """Build the index of --source in the folder --index, whatever is there."""

    config: Annotated[WikiSearchConfig, tyro.conf.arg(name="")] = field(default_factory=WikiSearchConfig)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Run tools on Ray Serve until interrupted."""

    tools: tuple[ToolName, ...] = AVAILABLE
    """The tools to run."""
    address: str | None = None
    """Cluster to join (auto, ray://...); None starts a local one unless RAY_ADDRESS is set."""
    config: Config = field(default_factory=lambda: ToolsConfig(calendar=CalendarConfig(today=True)))


def call(arguments: Call) -> int:
    """One call, or with --json one for every line of standard input; the exit code."""
    if arguments.json == (arguments.text is not None):
        raise ConfigurationError("call: give the text of one call, or --json and the texts on standard input")
    require_available([arguments.tool], arguments.config, field="TOOL")
    client = LocalTools.start(arguments.config, [arguments.tool])
    if arguments.json:
        for answer in answers(client, arguments.tool, arguments.date, sys.stdin.buffer):
            print(json.dumps({"result": answer.result, "reason": answer.reason}), flush=True)
        return 0
    answer = client.call(arguments.tool, [ToolInput(arguments.text or "", arguments.date)])[0]
    if answer.result is None:
        print(f"no result: {answer.reason}", file=sys.stderr)
        return 1
    print(answer.result)
    return 0


def answers(
    client: ToolClient, tool: ToolName, date: str | None, lines: Iterable[bytes]
) -> Iterator[ToolResult]:
    """One answer for each line, as soon as the line is there."""
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
    from tools_service.index import build

    if not arguments.config.source:
        raise ConfigurationError("--source: name the files or folders to index")
    manifest = build(arguments.config)
    print(json.dumps({"index": str(arguments.config.index), **manifest}, indent=2))
    return 0


def serve(arguments: Serve) -> int:
    """Start the tools, say how to reach them, wait for an interrupt, stop them."""
    require_available(arguments.tools, arguments.config, field="--tools")
    prepare(arguments.tools, arguments.config)

    import ray

    from tools_service.service import tools_on_ray

    ray.init(address=arguments.address, namespace="toolformer", log_to_driver=False)
    with tools_on_ray(arguments.config, arguments.tools):
        print(f"running on Ray at {ray.get_runtime_context().gcs_address}:")
        for tool in arguments.tools:
            print(f"  {tool:<10}  serve.get_app_handle({application(arguments.config, tool)!r})")
        print("from Python: tools_service.client.ServeTools(config).call(tool, [ToolInput(text)])")
        print("Ctrl-C stops them", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    arguments = tyro.cli(
        Call | Index | Serve,
        prog="python -m tools_service",
        description=__doc__,
        args=list(argv),
    )
    try:
        if isinstance(arguments, Call):
            return call(arguments)
        return index(arguments) if isinstance(arguments, Index) else serve(arguments)
    except PipelineError as error:
        print(f"python -m tools_service: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
