"""MCP servers for tests, sound and broken: ``python server.py KIND``; imports nothing of this project."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcp.server import Server
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import ListToolsResult, PaginatedRequestParams, Tool, ToolAnnotations

READ_ONLY = ToolAnnotations(read_only_hint=True)
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
PAGE = 64


def tools() -> MCPServer:
    """A server with a tool for each kind of answer."""
    server = MCPServer("tests")

    @server.tool(annotations=READ_ONLY)
    def double(number: int) -> str:
        return str(2 * number)

    @server.tool(annotations=READ_ONLY)
    def convert(amount: float, unit: str, target: str = "km") -> str:
        return f"{amount:g} {unit} in {target}"

    @server.tool()
    def delete(name: str) -> str:
        return f"deleted {name}"

    @server.tool(annotations=ToolAnnotations(read_only_hint=False, idempotent_hint=True))
    def put(name: str) -> str:
        return f"put {name}"

    @server.tool(annotations=READ_ONLY)
    def fail(text: str) -> str:
        raise ToolError(f"{text} and {os.environ.get('TEST_SECRET')}\n[not this]")

    @server.tool(annotations=READ_ONLY, structured_output=False)
    def picture() -> list[Any]:
        return ["a picture", Image(data=b"not really", format="png")]

    @server.tool(annotations=READ_ONLY)
    def long(length: int) -> str:
        return "x" * length

    @server.tool(annotations=READ_ONLY)
    def environment(name: str) -> str:
        return os.environ.get(name, "not set")

    @server.tool(annotations=READ_ONLY)
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return str(os.getpid())

    arrived, complete = [], asyncio.Event()

    @server.tool(annotations=READ_ONLY)
    async def gather(count: int) -> str:
        """Answers when `count` calls are under way at the same time."""
        arrived.append(count)
        if len(arrived) == count:
            complete.set()
        await complete.wait()
        return "gathered"

    def stop_at(file: str) -> str:
        """Ends the server, unless it stands in `file` that it has done so twice."""
        starts = len(Path(file).read_text()) if Path(file).exists() else 0
        if starts < 2:
            Path(file).write_text("x" * (starts + 1))
            os._exit(3)
        return "alive"

    server.tool(name="stop_read", annotations=READ_ONLY)(stop_at)
    server.tool(name="stop_write")(stop_at)

    @server.tool(annotations=READ_ONLY)
    async def hang(text: str) -> str:
        if text == "now":
            time.sleep(1_000)
        return text

    @server.tool(annotations=READ_ONLY)
    async def change(text: str, ctx: Context) -> str:
        """Removes this tool, or gives it other parameters, and says so."""
        server.remove_tool("change")
        if text == "other parameters":
            server.tool(name="change", annotations=READ_ONLY)(double)
        await ctx.notify_tools_changed()
        return "done"

    @server.tool(annotations=READ_ONLY)
    def on(text: str = "", date: str = "no date") -> str:
        return f"{text} {date}".strip()

    return server


def many(count: int = 500) -> Server[Any]:
    """A server that lists its tools in pages."""

    async def list_tools(context: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        start = int(params.cursor) if params and params.cursor else 0
        names = [f"tool{number}" for number in range(start, min(start + PAGE, count))]
        page = [Tool(name=name, input_schema=SCHEMA, annotations=READ_ONLY) for name in names]
        return ListToolsResult(tools=page, next_cursor=str(start + PAGE) if start + PAGE < count else None)

    return Server("many", on_list_tools=list_tools)


async def _serve(server: Server[Any]) -> None:
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def old(first: bool) -> None:
    """A server without SDK, of an early protocol, whose ids come first or last."""
    tool: dict[str, Any] = {"name": "echo", "inputSchema": SCHEMA, "annotations": {"readOnlyHint": True}}
    for line in sys.stdin:
        message = json.loads(line)
        if message["method"] == "initialize":
            result: Any = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                           "serverInfo": {"name": "old", "version": "0"}}  # fmt: skip
        elif message["method"] == "tools/list":
            result = {"tools": [tool]}
        elif message["method"] == "tools/call":
            text = message["params"]["arguments"]["text"]
            if text == "change":
                tool = {**tool, "inputSchema": {"type": "object", "properties": {}}}
                print('{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}')
            result = {"content": [{"type": "text", "text": "x" * 10_000_000 if text == "long" else text}]}
        elif "id" in message:
            answer = {
                "jsonrpc": "2.0",
                "id": message["id"],
                "error": {"code": -32601, "message": "no method"},
            }
            print(json.dumps(answer), flush=True)
            continue
        else:
            continue
        head, body = {"jsonrpc": "2.0", "id": message["id"]}, {"result": result}
        print(json.dumps({**head, **body} if first else {**body, **head}), flush=True)


def main(kind: str) -> None:
    """Serve on the standard streams."""
    if kind == "exit":
        print("Traceback: and so on\nKeyError: 'API_KEY'", file=sys.stderr)
        sys.exit(3)
    elif kind == "silent":
        sys.stdin.read()
    elif kind == "deaf":  # hangs, and does not end when its standard input closes
        while True:
            time.sleep(1_000)
    elif kind == "noisy":
        print("Welcome to the server!\n\n{not json", flush=True)
        tools().run()
    elif kind == "flood":
        while True:
            sys.stdout.write("x" * 1_000_000)
    elif kind == "many":
        asyncio.run(_serve(many()))
    elif kind == "deaf-later":  # serves, but does not end when its standard input closes
        with suppress(Exception):
            tools().run()
        time.sleep(1_000)
    elif kind in ("old", "old-last"):
        old(first=kind == "old")
    else:
        tools().run()


if __name__ == "__main__":
    main(sys.argv[1])
