"""Tools of MCP servers over Streamable HTTP: sound, restarted, without the token, and with long answers."""

from __future__ import annotations

import pytest

from tests.tools_service.remote.server import tools
from tests.tools_service.serving.endpoints import serving
from tools_service.config import HttpConfig
from tools_service.contract.settings import Deployment
from tools_service.contract.tool import DEADLINE, UNREACHABLE, ToolInput
from tools_service.remote.connection import McpServerError
from tools_service.remote.mcp import McpTool
from tools_service.remote.settings import McpConfig

pytestmark = pytest.mark.unit


def ask(tool: McpTool, *texts: str) -> list[str | None]:
    return [answer.result or answer.reason for answer in tool([ToolInput(text) for text in texts])]


def config(url: str, tool: str = "double", **settings: object) -> McpConfig:
    deployment = Deployment(deadline_s=settings.pop("deadline_s", 30.0))
    return McpConfig(url=f"{url}/mcp", tool=tool, deployment=deployment, **settings)


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("stateless_http", [False, True])
def test_calls_and_long_answers(json_response: bool, stateless_http: bool) -> None:
    app = tools().streamable_http_app(json_response=json_response, stateless_http=stateless_http)
    with serving(app, HttpConfig(port=0)) as url:
        tool = McpTool(config(url))
        assert ask(tool, *map(str, range(100))) == [str(2 * number) for number in range(100)]
        tool.close()
        tool = McpTool(config(url, "long"))
        assert ask(tool, "3", "10000000", "4") == ["xxx", "answer too long", "xxxx"]
        tool.close()


def test_a_server_that_is_started_again_is_found_again() -> None:
    with serving(tools().streamable_http_app(), HttpConfig(port=0)) as url:
        tool = McpTool(config(url, sessions=1, deadline_s=5.0))
        assert ask(tool, "1") == ["2"]
    port = int(url.rpartition(":")[2])
    assert ask(tool, "1")[0] in (DEADLINE, UNREACHABLE)
    with serving(tools().streamable_http_app(), HttpConfig(port=port)):
        while ask(tool, "2") != ["4"]:
            pass
        tool.close()


def test_a_server_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_AUTHORIZATION", "Bearer s3cr3t")
    with serving(tools().streamable_http_app(streamable_http_path="/other"), HttpConfig(port=0)) as url:
        with pytest.raises(McpServerError) as raised:
            McpTool(config(url, headers={"Authorization": "TEST_AUTHORIZATION"}))
        assert str(raised.value) == f"MCP server {url}/mcp: it answers HTTP 404 Not Found"
