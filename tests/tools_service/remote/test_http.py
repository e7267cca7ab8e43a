"""A tool behind a URL: our own endpoint, and endpoints that answer otherwise."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.tools_service.serving.endpoints import serving
from tools_service.config import HttpConfig, ToolsConfig
from tools_service.contract.settings import Deployment
from tools_service.contract.tool import (
    DEADLINE,
    MALFORMED_ANSWER,
    OVERLOADED,
    UNREACHABLE,
    ToolInput,
    ToolResult,
    ToolUnavailableError,
)
from tools_service.remote.http import HttpTool
from tools_service.remote.settings import HttpToolConfig
from tools_service.serving.http import create_app
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


def tool_at(url: str, deadline_s: float = 30.0, **settings: object) -> HttpTool:
    return HttpTool(HttpToolConfig(url=url, deployment=Deployment(deadline_s=deadline_s), **settings))


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[object]]]:
    """An endpoint that gives these answers in turn, the last one for ever; and what it was sent."""
    left, sent = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/Tool", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_our_own_endpoint_answers_with_results_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TOKEN", "s3cr3t")
    client = LocalTools({"Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())
    tools, config = ("Calculator", "Calendar"), HttpConfig(port=0)
    app = create_app(client, tools, config, "s3cr3t", lambda: dict.fromkeys(tools, "RUNNING"))
    with serving(app, config) as url:
        calculator = tool_at(f"{url}/Calculator", token="TEST_TOKEN")
        assert calculator.name == "Calculator"
        assert calculator([ToolInput("1+1"), ToolInput("x")]) == [
            ToolResult("2"),
            ToolResult(reason="not arithmetic"),
        ]
        assert calculator([]) == []
        [answer] = tool_at(f"{url}/Calendar", token="TEST_TOKEN")([ToolInput("", "2023-01-30")])
        assert answer == ToolResult("Today is Monday, January 30, 2023.")
        [answer] = tool_at(f"{url}/Calculator")([ToolInput("1+1")])
        assert answer.reason == "tool error: HTTP 401: send the token: Authorization: Bearer TOKEN"


def test_a_missing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TOKEN", raising=False)
    with pytest.raises(ToolUnavailableError, match="the environment variable TEST_TOKEN is not set"):
        tool_at("http://127.0.0.1:9/Tool", token="TEST_TOKEN")


def test_an_overloaded_endpoint_is_asked_again() -> None:
    with answering((503, b""), (429, b""), (200, b'[{"result": "1", "reason": null}]')) as (url, sent):
        assert tool_at(url)([ToolInput("a")]) == [ToolResult("1")]
        assert sent == [["a"]] * 3


def test_an_endpoint_that_stays_away_is_a_reason() -> None:
    with answering((503, b"")) as (url, _):
        assert tool_at(url, deadline_s=0.3)([ToolInput("a")]) == [ToolResult(reason=OVERLOADED)]
    assert tool_at(url, deadline_s=0.3)([ToolInput("a")] * 2) == [ToolResult(reason=UNREACHABLE)] * 2


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"not JSON", MALFORMED_ANSWER),
        (200, b"[]", MALFORMED_ANSWER),
        (200, b'{"result": "1"}', MALFORMED_ANSWER),
        (200, b'["1"]', MALFORMED_ANSWER),
        (200, b'[{"result": null, "reason": null}]', MALFORMED_ANSWER),
        (200, b'[{"result": "1", "reason": "2"}]', MALFORMED_ANSWER),
        (200, b'[{"result": 1, "reason": null}]', MALFORMED_ANSWER),
        (200, b"[" + b" " * 2_000, "answer too long"),
        (500, b"[" * 900, "tool error: HTTP 500"),
        (404, b'{"error": "no such\\ntool"}', "tool error: HTTP 404: no such\\ntool"),
        (302, b"", "tool error: HTTP 302"),
    ],
)
def test_other_answers_are_a_reason(status: int, body: bytes, reason: str) -> None:
    with answering((status, body)) as (url, _):
        assert tool_at(url, max_answer_bytes=1_000)([ToolInput("a")]) == [ToolResult(reason=reason)]


def test_an_endpoint_that_hangs_costs_its_calls_a_reason_at_the_deadline() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/Tool"
        assert tool_at(url, deadline_s=0.3)([ToolInput("a")]) == [ToolResult(reason=DEADLINE)]


def test_a_url_holds_no_password_and_names_http() -> None:
    for url in ("http://user:password@host/Tool", "ftp://host/Tool", "host:8700/Tool", "http://"):
        with pytest.raises(ValueError, match="must "):
            HttpToolConfig(url=url)
