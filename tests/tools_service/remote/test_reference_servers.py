"""Reference servers of the protocol's authors, where they are installed.

mcp-server-time comes with requirements-dev.txt. The variables name programs of the others, which need
packages that these tests must not install: a venv with mcp-server-fetch, and a script that runs
@modelcontextprotocol/server-everything (npx, Node).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools_service.contract.tool import ToolInput
from tools_service.remote.connection import McpServerError
from tools_service.remote.mcp import McpTool
from tools_service.remote.settings import McpConfig

pytestmark = pytest.mark.unit

FETCH, EVERYTHING = "TEST_MCP_SERVER_FETCH", "TEST_MCP_SERVER_EVERYTHING"


def command_of(variable: str, program: str) -> tuple[str, ...]:
    """The command in the variable, or the program on PATH or beside Python; skips the test without."""
    if command := os.environ.get(variable):
        return tuple(shlex.split(command))
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(program, path=folders)
    if not found:
        pytest.skip(f"{program} is not installed, and {variable} names no command")
    return (found,)


def test_time() -> None:
    command = command_of("TEST_MCP_SERVER_TIME", "mcp-server-time")
    tool = McpTool(McpConfig(command=command, tool="convert_time", sessions=1))
    right, unknown, short = tool(
        [ToolInput(f"{zone}, 14:30, Asia/Kolkata") for zone in ("Asia/Tokyo", "Nowhere/X")]
        + [ToolInput("UTC")]
    )
    tool.close()
    assert right.result
    assert "T11:00:00+05:30" in right.result
    assert unknown.reason
    assert "Nowhere/X" in unknown.reason
    assert short.reason == "missing argument: time"
    with pytest.raises(McpServerError, match="the nearest are get_current_time"):
        McpTool(McpConfig(command=command, tool="get_curent_time"))


def test_fetch(tmp_path: Path) -> None:
    command = command_of(FETCH, "mcp-server-fetch")
    (tmp_path / "page.html").write_text("<html><body><p>A lamp costs 42 euros.</p></body></html>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        options = ("--ignore-robots-txt", "--allow-private-ips")
        tool = McpTool(McpConfig(command=command + options, tool="fetch", sessions=1), style="text")
        page = f"http://127.0.0.1:{pages.server_port}/page.html"
        found, missing = tool([ToolInput(page), ToolInput(f"{page}x")])
        tool.close()
        pages.shutdown()
        thread.join()
    assert found.result
    assert "A lamp costs 42 euros." in found.result
    assert missing.reason
    assert "404" in missing.reason


def test_everything() -> None:
    command = command_of(EVERYTHING, "mcp-server-everything")
    answers = {}
    for name, text in (("echo", "hello"), ("get-sum", "3, 4"), ("get-tiny-image", "")):
        tool = McpTool(McpConfig(command=command, tool=name, sessions=1, allow_writes=True))
        [answers[name]] = tool([ToolInput(text)])
        tool.close()
    assert answers["echo"].result == "Echo: hello"
    assert answers["get-sum"].result == "The sum of 3 and 4 is 7."
    assert answers["get-tiny-image"].reason == "not text: image"
