"""The tools as a server of the Model Context Protocol: `python -m tools_service serve --mcp`.

In: a ToolClient and declarations. Out: an MCP server on standard input and output, or a route /mcp
(Streamable HTTP) beside POST /TOOL, for the same hosts, pages and token as http.py. Each tool has its name,
description and parameters, and is declared read-only. A result is text. A reason is an error of the tool,
which the caller's model can read.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tools_service.base.settings import IsoDate
from tools_service.base.version import __version__
from tools_service.config import HttpConfig
from tools_service.contract.arguments import ArgumentsError, CallArguments
from tools_service.contract.declarations import import_object
from tools_service.contract.signatures import FunctionSignature
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.serving.http import require_allowed
from tools_service.tools.client import ToolClient

PATH = "/mcp"

_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
_DATE = {"type": "string", "format": "date", "description": "The day on which the call is made, YYYY-MM-DD."}
_ISO_DATE = TypeAdapter(IsoDate)


class OfferedTool:
    """A declared tool as MCP has it: its declaration, and the input of a call that given arguments make."""

    def __init__(self, spec: ToolSpec) -> None:
        self.name = spec.name
        implementation = import_object(spec.implementation, f"tools.{spec.name}.class")
        function = FunctionSignature(implementation) if inspect.isfunction(implementation) else None
        schema: dict[str, Any] = spec.parameters or (function.parameters if function else _INPUT)
        self._arguments = CallArguments(schema if spec.takes_input else _NOTHING, spec.arguments)
        self._is_dated = spec.dated
        properties: dict[str, Any] = dict(schema["properties"]) if spec.takes_input else {}
        if spec.dated:
            properties["date"] = _DATE
        self.declaration = Tool(
            name=spec.name,
            description=spec.description
            or (function and function.description)
            or inspect.getdoc(implementation),
            input_schema={**(schema if spec.takes_input else _NOTHING), "properties": properties},
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True),
        )

    def input_of(self, values: dict[str, Any]) -> ToolInput | str:
        """The call with these arguments, or why there is none."""
        values = dict(values)
        date = values.pop("date", None) if self._is_dated else None
        try:
            date = None if date is None else _ISO_DATE.validate_python(date)
        except ValidationError:
            return "wrong date"
        if self._arguments.style == "text" and values.keys() == self._arguments.parameters.required:
            [text] = values.values()
            if isinstance(text, str):  # the whole input of a call, which need not be written in one
                return ToolInput(text, date)
        try:
            return ToolInput(self._arguments.write(values), date)
        except ArgumentsError as error:
            return str(error)


def create_mcp_server(client: ToolClient, specs: Sequence[ToolSpec]) -> Server[Any]:
    """A server that offers the tools and asks `client`."""
    offered = {spec.name: OfferedTool(spec) for spec in specs}

    async def list_tools(context: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[tool.declaration for tool in offered.values()])

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in offered:
            raise MCPError(INVALID_PARAMS, f"no such tool; there are {', '.join(offered)}")
        call = offered[params.name].input_of(params.arguments or {})
        if isinstance(call, str):
            answer = ToolResult(reason=call)
        else:
            [answer] = await client.acall(params.name, [call])
        text = answer.reason if answer.result is None else answer.result
        return CallToolResult(content=[TextContent(text=text or "")], is_error=answer.result is None)

    return Server("toolformer-on-ray", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


def run_on_stdio(server: Server[Any]) -> None:
    """Answer on standard input and output until the input ends. Other output goes to standard error.

    It answers in a thread, so that a signal can end the caller's wait: a read of standard input cannot be
    interrupted.
    """

    async def run() -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="mcp", daemon=True)
    thread.start()
    thread.join()


def add_mcp_route(app: Starlette, server: Server[Any], config: HttpConfig, token: str | None) -> None:
    """Let `app` (http.py) answer at /mcp, too. Each request stands for itself: no sessions are kept."""
    manager = StreamableHTTPSessionManager(
        server, stateless=True, json_response=True, max_request_body_size=config.max_body_bytes
    )

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    app.router.routes.insert(0, Route(PATH, _Endpoint(manager, config, token)))
    app.router.lifespan_context = running


class _Endpoint:
    """The application behind the route. It refuses what http.py refuses."""

    def __init__(self, manager: StreamableHTTPSessionManager, config: HttpConfig, token: str | None) -> None:
        self._manager = manager
        self._config = config
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        require_allowed(Request(scope), self._config, self._token)
        await self._manager.asgi_app(scope, receive, send)
