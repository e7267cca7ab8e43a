"""Our tools as an MCP server, asked by the SDK's client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent

from tests.tools_service.serving.endpoints import serving
from tools_service.config import CalendarConfig, HttpConfig, ToolsConfig
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.remote.mcp import McpTool
from tools_service.remote.settings import McpConfig
from tools_service.serving.http import create_app
from tools_service.serving.mcp import add_mcp_route, create_mcp_server
from tools_service.tools.client import LocalTools

TOOLS = ("Calculator", "Calendar")
CONFIG = ToolsConfig(calendar=CalendarConfig(today=False))


def text_of(result: CallToolResult) -> str:
    [block] = result.content
    assert isinstance(block, TextContent)
    return f"[{block.text}]" if result.is_error else block.text


def convert(amount: float, unit: str = "mi") -> str:
    """Converts an amount into kilometres."""
    return f"{amount} {unit}"


class Echo:
    """A client that answers with the call."""

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult(f"{tool}({call.text}) {call.date}") for call in inputs]


async def ask(client: Client, tool: str, **arguments: Any) -> str:
    return text_of(await client.call_tool(tool, arguments))


@pytest.mark.unit
def test_tools_are_declared_with_their_parameters_and_answer() -> None:
    async def session() -> None:
        local = LocalTools.start(CONFIG, TOOLS)
        async with Client(create_mcp_server(local, [CONFIG.spec(tool) for tool in TOOLS])) as client:
            calculator, calendar = (await client.list_tools()).tools
            assert calculator.description == "Evaluates an expression of numbers, + - * / and parentheses."
            assert calculator.input_schema["properties"] == {"input": {"type": "string"}}
            assert calculator.annotations
            assert calculator.annotations.read_only_hint
            assert list(calendar.input_schema["properties"]) == ["date"]
            assert "required" not in calendar.input_schema
            assert await ask(client, "Calculator", input="27 + 4 * 2") == "35"
            assert await ask(client, "Calculator", input="four") == "[not arithmetic]"
            assert await ask(client, "Calculator") == "[cannot write {} in a call: missing argument: input]"
            assert await ask(client, "Calendar", date="2023-01-30") == "Today is Monday, January 30, 2023."
            assert await ask(client, "Calendar") == "[no date]"
            assert await ask(client, "Calendar", date="tomorrow") == "[wrong date]"
            with pytest.raises(MCPError, match="no such tool; there are Calculator, Calendar"):
                await ask(client, "MT", input="x")

    asyncio.run(session())


@pytest.mark.unit
def test_several_parameters_become_the_input_of_a_call() -> None:
    spec = ToolSpec(name="Convert", implementation=f"{__name__}:convert")

    async def session() -> None:
        async with Client(create_mcp_server(Echo(), [spec])) as client:  # type: ignore[arg-type]
            [tool] = (await client.list_tools()).tools
            assert tool.description == "Converts an amount into kilometres."
            assert tool.input_schema["required"] == ["amount"]
            assert await ask(client, "Convert", amount=3) == "Convert(3) None"
            assert await ask(client, "Convert", amount=3.5, unit="a, b") == 'Convert(3.5, "a, b") None'
            assert "amount" in await ask(client, "Convert", amount="three")

    asyncio.run(session())


@pytest.mark.unit
def test_over_http_with_the_token_of_the_endpoint() -> None:
    local = LocalTools.start(CONFIG, TOOLS)
    config = HttpConfig(port=0)
    app = create_app(local, TOOLS, config, "s3cr3t", lambda: dict.fromkeys(TOOLS, "RUNNING"))
    add_mcp_route(app, create_mcp_server(local, [CONFIG.spec(tool) for tool in TOOLS]), config, "s3cr3t")

    async def session(url: str) -> None:
        headers = {"Authorization": "Bearer s3cr3t"}
        async with (
            httpx2.AsyncClient(headers=headers) as http_client,
            Client(streamable_http_client(f"{url}/mcp", http_client=http_client)) as client,
        ):
            assert await ask(client, "Calculator", input="1 + 1") == "2"

    with serving(app, config) as url:
        asyncio.run(session(url))
        assert httpx2.get(f"{url}/health").status_code == 200
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer s3cr3t", "Origin": "http://evil.example"}, 403),
            ({"Authorization": "Bearer s3cr3t", "Host": "evil.example"}, 403),
        ):
            assert httpx2.post(f"{url}/mcp", json={}, headers=headers).status_code == status


@pytest.mark.unit
def test_our_own_client_of_our_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_AUTHORIZATION", "Bearer s3cr3t")
    local = LocalTools.start(CONFIG, TOOLS)
    config = HttpConfig(port=0)
    app = create_app(local, TOOLS, config, "s3cr3t", lambda: dict.fromkeys(TOOLS, "RUNNING"))
    add_mcp_route(app, create_mcp_server(local, [CONFIG.spec(tool) for tool in TOOLS]), config, "s3cr3t")
    with serving(app, config) as url:
        settings = McpConfig(
            url=f"{url}/mcp",
            tool="Calendar",
            headers={"Authorization": "TEST_AUTHORIZATION"},
            date_parameter="date",
        )
        tool = McpTool(settings)
        assert tool([ToolInput("", "2023-01-30"), ToolInput("")]) == [
            ToolResult("Today is Monday, January 30, 2023."),
            ToolResult(reason="tool error: no date"),
        ]
        tool.close()


@pytest.mark.ray
def test_serve_mcp_answers_on_standard_input_and_output() -> None:
    arguments = ["-m", "tools_service", "serve", "--mcp", "--tools", "Calculator", "--address", "local"]

    async def session() -> None:
        async with Client(StdioServerParameters(command=sys.executable, args=arguments)) as client:
            assert await ask(client, "Calculator", input="1 + 1") == "2"

    asyncio.run(session())
