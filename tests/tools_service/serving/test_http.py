"""The tools over HTTP: what is answered, what is refused, and that it ends."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools_service.config import HttpConfig, ToolsConfig
from tools_service.serving.http import (
    TOKEN_VARIABLE,
    HttpError,
    bind_socket,
    create_app,
    create_server,
    read_token,
)
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

TOOLS = ("Calculator", "Calendar")
CONFIG = HttpConfig(port=0, max_body_bytes=10_000, max_inputs=5)
HEALTH = dict.fromkeys(TOOLS, "RUNNING")


class Endpoint:
    """Speaks to a server on `port`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def post(self, path: str, inputs: object, **headers: str) -> tuple[int, Any]:
        return self("POST", path, json.dumps(inputs), **headers)


@contextmanager
def running(token: str | None = None, health: dict[str, str] = HEALTH) -> Iterator[Endpoint]:
    client = LocalTools({"Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())
    listener = bind_socket(CONFIG)
    served = create_server(create_app(client, TOOLS, CONFIG, token, lambda: health))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Endpoint(listener.getsockname()[1])
    finally:
        served.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running() as found:
        yield found


def test_a_list_is_answered_in_order(endpoint: Endpoint) -> None:
    assert endpoint.post("/Calculator", ["27 + 4 * 2", "four", {"text": "1/8"}]) == (
        200,
        [
            {"result": "35", "reason": None},
            {"result": None, "reason": "not arithmetic"},
            {"result": "0.13", "reason": None},
        ],
    )
    assert endpoint.post("/Calendar", [{"text": "", "date": "2023-01-30"}, {"text": "", "date": None}]) == (
        200,
        [
            {"result": "Today is Monday, January 30, 2023.", "reason": None},
            {"result": None, "reason": "no date"},
        ],
    )
    assert endpoint.post("/Calculator", []) == (200, [])
    assert endpoint("POST", "/Calculator", b'["\\ud800", "\xc3\xa9"]')[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"[1", 400, "not JSON: "),
        (b"", 400, "not JSON: "),
        (b'["\xff"]', 400, "not JSON: "),
        (b"[" * 9_000, 400, "not JSON: "),
        (b"1" * 9_000, 400, "not JSON: "),
        (b'"1+1"', 400, "wanted a list of inputs, got '1+1'"),
        (b'{"text": "1"}', 400, "wanted a list of inputs, got {'text': '1'}"),
        (b'["1", 2]', 400, 'input 1: wanted a string or {"text": STRING, "date": STRING or null}, got 2'),
        (b"[null]", 400, 'input 0: wanted a string or {"text": STRING, "date": STRING or null}, got None'),
        (b"[{}]", 400, 'input 0: wanted a string or {"text": STRING'),
        (b'[{"text": "1", "date": 2023}]', 400, "input 0: wanted"),
        (b'[{"text": "1", "when": "now"}]', 400, "input 0: wanted"),
        (b'["1", "1", "1", "1", "1", "1"]', 413, "6 inputs are more than 5"),
        (b'["' + b"1" * 10_000 + b'"]', 413, "more than 10000 bytes"),
    ],
)
def test_a_malformed_or_too_large_request_is_refused_with_a_message(
    endpoint: Endpoint, body: bytes, status: int, said: str
) -> None:
    found, answer = endpoint("POST", "/Calculator", body)
    assert (found, list(answer)) == (status, ["error"])
    assert said in answer["error"]


def test_a_body_that_says_less_than_it_is_cannot_pass_the_limit(endpoint: Endpoint) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000

    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    connection.request(
        "POST", "/Calculator", chunks(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/MT", 404),
        ("POST", "/calculator", 404),
        ("POST", "/", 404),
        ("POST", "/Calculator/x", 404),
        ("GET", "/Calculator", 405),
        ("POST", "/health", 404),
    ],
)
def test_other_paths_and_methods_are_refused(endpoint: Endpoint, method: str, path: str, status: int) -> None:
    found, answer = endpoint(method, path, b'["1"]')
    assert (found, list(answer)) == (status, ["error"])


def test_health_says_which_tools_run(endpoint: Endpoint) -> None:
    assert endpoint("GET", "/health") == (200, {"tools": HEALTH})
    with running(health={**HEALTH, "Calendar": "UNHEALTHY"}) as ill:
        assert ill("GET", "/health") == (503, {"tools": {**HEALTH, "Calendar": "UNHEALTHY"}})


def test_a_token_that_is_set_is_asked_for() -> None:
    with running(token="secret-word") as endpoint:
        for header in ({}, {"Authorization": "secret-word"}, {"Authorization": "Bearer wrong"}):
            status, answer = endpoint.post("/Calculator", ["1+1"], **header)
            assert (status, "token" in answer["error"]) == (401, True)
            assert endpoint.post("/NoSuchTool", [], **header)[0] == 401  # nothing is told to strangers
        assert endpoint.post("/Calculator", ["1+1"], Authorization="Bearer secret-word")[0] == 200


def test_other_machines_need_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert read_token(HttpConfig(host=host)) is None
    for host in ("0.0.0.0", "::", "10.0.0.1", "node-1"):
        with pytest.raises(HttpError, match="callers must show a token"):
            read_token(HttpConfig(host=host))
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read_token(HttpConfig(host="0.0.0.0", token_file=file)) == "from-file"
    monkeypatch.setenv(TOKEN_VARIABLE, "from-environment")
    assert read_token(HttpConfig()) == "from-environment"
    assert read_token(HttpConfig(token_file=file)) == "from-file"


@pytest.mark.parametrize("token", ["", "two words", "schlüssel"])
def test_a_token_that_cannot_be_sent_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(HttpError, match="one word of visible ASCII"):
        read_token(HttpConfig(token_file=tmp_path / "token"))
    with pytest.raises(HttpError, match="No such file"):
        read_token(HttpConfig(token_file=tmp_path / "nowhere"))


def test_a_port_in_use_is_refused_by_name() -> None:
    with bind_socket(CONFIG) as first:
        port = first.getsockname()[1]
        with pytest.raises(HttpError, match=f"--http.port {port}: "):
            bind_socket(HttpConfig(port=port))
