"""The tools over HTTP: what is answered, what is refused, and that it ends."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tools_service.config import HttpConfig, ToolsConfig
from tools_service.serving import http as endpoint_module
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
def running(
    token: str | None = None, health: dict[str, str] = HEALTH, config: HttpConfig = CONFIG
) -> Iterator[Endpoint]:
    client = LocalTools({"Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())
    listener = bind_socket(config)
    served = create_server(create_app(client, TOOLS, config, token, lambda: health))
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
        (b'[{"text": "1", "text": "2"}]', 400, "not JSON: a name stands twice"),
        (b'[{"text": "1", "date": NaN}]', 400, "not JSON: NaN is no JSON"),
        (b"[-Infinity]", 400, "not JSON: -Infinity is no JSON"),
        (b"[1e999]", 400, "input 0: wanted"),
        (b'[{"\\ud800": "1"}]', 400, "input 0: wanted"),
        (b'["a\nb"]', 400, "not JSON: "),
        (b'["1"] ["2"]', 400, "not JSON: "),
        (b'{"a":' * 1_500 + b"1" + b"}" * 1_500, 400, ""),
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
    # The endpoint answers and closes at once: a client that still sends sees that, or the answer.
    with suppress(BrokenPipeError, ConnectionResetError):
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
        ("POST", "/Calculator/", 404),
        ("POST", "/Calculator%2F", 404),
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


PAGE = {"Origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # good clients
        ({}, 200),
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # curl -d
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:8700"}, 200),
        ({"Host": "[::1]:8700"}, 200),
        ({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80", "Content-Type": "application/json"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}, 200),
        ({"Host": "tools.example"}, 200),  # allowed by the configuration
        # DNS rebinding
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8700"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": "0.0.0.0"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "sub.tools.example"}, 403),
        # pages of other sites
        ({**PAGE}, 403),
        ({**PAGE, "Content-Type": "application/json"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Content-Type": "application/json"}, 403),
        # what pages may send without asking
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": "application/xml"}, 415),
        ({"Sec-Fetch-Site": "none"}, 415),
        (
            {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"},
            415,
        ),
    ],
)
def test_pages_of_other_sites_get_no_answer(headers: dict[str, str], status: int) -> None:
    config = CONFIG.model_copy(update={"allowed_hosts": ("tools.example",)})
    with running(config=config) as endpoint:
        found, answer = endpoint("POST", "/Calculator", b'["1+1"]', **headers)
        assert found == status, answer
        assert (status == 200) == isinstance(answer, list)
        if headers.keys() == {"Host"}:
            assert endpoint("GET", "/health", **headers)[0] == status


def raw(port: int, sent: bytes) -> bytes:
    """What comes back for `sent`, until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        while part := connection.recv(65_536):
            received += part
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"P",
        b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nX-A: ",
        b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n[",
        b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    ],
)
def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(endpoint_module, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(endpoint_module, "BODY_TIMEOUT_S", 0.2)
    with running() as endpoint:
        raw(endpoint.port, sent)  # returns


REPEATED = (
    b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\nConnection: close\r\n"
    b'Content-Type: application/json\r\n%s\r\n\r\n["1+1"]'
)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"400"),
        (
            b"POST /Calculator/ HTTP/1.0\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n",
            b"404",
        ),
        (REPEATED % b"Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site", b"403"),
        (REPEATED % b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: same-origin", b"200"),
        (REPEATED % b"Content-Type: text/plain", b"415"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e9\r\n\r\n", b"400"),
        (b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n[", b"413"),
        (b"TRACE /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"405"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"40"),
    ],
)
def test_other_dialects_are_answered_or_refused(endpoint: Endpoint, sent: bytes, status: bytes) -> None:
    assert raw(endpoint.port, sent).startswith(b"HTTP/1.1 " + status)


def test_a_header_without_end_is_refused(endpoint: Endpoint) -> None:
    sent = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 400_000
    try:
        answer = raw(endpoint.port, sent)
    except (ConnectionResetError, BrokenPipeError):  # the rest of the header was not read
        return
    assert answer.startswith(b"HTTP/1.1 400")


def test_requests_in_one_piece_are_answered_in_order(endpoint: Endpoint) -> None:
    head = b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n"
    received = raw(endpoint.port, head + b'\r\n["1+1"]' + head + b'Connection: close\r\n\r\n["2+2"]')
    assert received.index(b'"result":"2"') < received.index(b'"result":"4"')


def test_a_client_that_leaves_early_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    head = b"POST /Calculator HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n["
    with running() as endpoint:
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as connection:
            connection.sendall(head)
        assert endpoint.post("/Calculator", ["1+1"])[0] == 200
    assert "Traceback" not in capsys.readouterr().err
