"""A cluster that is not there is noticed in seconds, and said in one line."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from ray.exceptions import AuthenticationError

from tools_service.runtime import address
from tools_service.runtime.address import (
    RayAddressError,
    is_loopback,
    require_cluster,
    require_dashboard,
    split_address,
)

pytestmark = pytest.mark.unit

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A server on a loopback port that answers one connection; None accepts and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is None:
                    done.wait(30)
                elif answer:
                    connection.recv(100)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize(
    "wrong",
    [
        "", " ", "head", "head:", ":6379", "head:port", "head:0", "head:65536", "head:-1", "head:999999",
        "head:６３７９", "head:6379 ", " head:6379", "he ad:6379", "head:6379/", "head:6379\n", "a:1:2",
        "::1:6379", "[::1]", "[::1]:", "[nonsense]:6379", "user@head:6379", "ray://", "ray://head",
        "ray://head:x", "RAY://head:10001", "redis://head:6379", "//head:6379", "head:6379?x=1", "None",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused(wrong: str) -> None:
    with pytest.raises(RayAddressError, match=r"RAY_ADDRESS '.*': not an address of Ray; name HOST:PORT"):
        require_cluster(wrong, "RAY_ADDRESS")


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:8265", "https://head", "HTTP://head:8265/"])
def test_the_address_of_a_dashboard_is_recognised(wrong: str) -> None:
    with pytest.raises(RayAddressError, match="dashboard's address; name HOST:PORT"):
        require_cluster(wrong, "RAY_ADDRESS")


def test_addresses_are_read() -> None:
    assert split_address("head:6379", "x") == ("head", 6379)
    assert split_address("ray://10.0.0.1:10001", "x") == ("10.0.0.1", 10001)
    assert split_address("[fe80::1%eth0]:6379", "x") == ("fe80::1%eth0", 6379)
    assert split_address("ray_head-1.svc.:1", "x") == ("ray_head-1.svc.", 1)


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_closed_port_is_named(closed_port: int, scheme: str, host: str) -> None:
    with pytest.raises(
        RayAddressError, match=f"ray.address .*:{closed_port}: no Ray cluster there: "
    ) as caught:
        require_cluster(f"{scheme}{host}:{closed_port}", "ray.address")
    assert "\n" not in str(caught.value)
    assert "start it, or name another" in str(caught.value)


@pytest.mark.parametrize(
    "cause",
    [
        socket.gaierror(-2, "Name or service not known"),
        OSError(113, "No route to host"),
        OSError(101, "Network is unreachable"),
        ConnectionResetError(104, "Connection reset by peer"),
        PermissionError(1, "Operation not permitted"),
        OSError("nameless"),
        UnicodeError("label too long"),
    ],
)
def test_a_host_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise cause

    monkeypatch.setattr(socket, "create_connection", refuse)
    said = getattr(cause, "strerror", None) or str(cause)
    with pytest.raises(RayAddressError, match=f"head:6379: {said}; start it"):
        require_cluster("head:6379", "RAY_ADDRESS")


@pytest.mark.parametrize("hangs", [True, False])
def test_a_host_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """A black hole, and a resolver without an answer, which has no time limit of its own."""
    released = threading.Event()

    def connect(*_: object, **__: object) -> socket.socket:
        if hangs:
            released.wait(30)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(address, "TIMEOUT_S", 0.05)
    with pytest.raises(RayAddressError, match="head:6379 does not answer within 0 s"):
        require_cluster("head:6379", "RAY_ADDRESS")
    released.set()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\0\0\0\4", b"\0" * 9]
)
def test_another_server_is_not_ray(answer: bytes) -> None:
    with listening(answer) as port, pytest.raises(RayAddressError, match=r"is not Ray|reset"):
        require_cluster(f"127.0.0.1:{port}", "RAY_ADDRESS")


def test_a_silent_server_is_not_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "TIMEOUT_S", 0.2)
    with listening(None) as port, pytest.raises(RayAddressError, match="does not answer"):
        require_cluster(f"127.0.0.1:{port}", "RAY_ADDRESS")


@contextmanager
def grpc_server(*methods: str, answer: bytes = b"", status: grpc.StatusCode | None = None) -> Iterator[int]:
    """A gRPC server with `methods`, which answer with a message, or refuse with `status`."""

    def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
        if status is not None:
            context.abort(status, "no\nentry")
        return answer

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            known = details.method in methods
            return grpc.unary_unary_rpc_method_handler(handle) if known else None

    server = grpc.server(ThreadPoolExecutor(2), [Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


GCS = "/ray.rpc.NodeInfoGcsService/CheckAlive"
CLIENT_SERVER = "/ray.rpc.RayletDriver/ClusterInfo"


def test_the_servers_of_ray_are_told_from_one_another() -> None:
    """Several ports of a cluster speak gRPC; on the wrong one Ray itself waits for minutes."""
    with grpc_server(GCS) as port:
        require_cluster(f"127.0.0.1:{port}", "RAY_ADDRESS")
        with pytest.raises(RayAddressError, match="is not a Ray client server of Ray; name HOST:PORT"):
            require_cluster(f"ray://127.0.0.1:{port}", "RAY_ADDRESS")
    with grpc_server(CLIENT_SERVER) as port:
        require_cluster(f"ray://127.0.0.1:{port}", "RAY_ADDRESS")
        with pytest.raises(RayAddressError, match=r"RAY_ADDRESS 127.* is not a GCS of Ray; name HOST:PORT"):
            require_cluster(f"127.0.0.1:{port}", "RAY_ADDRESS")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or"),
        (grpc.StatusCode.UNAVAILABLE, r"does not answer as Ray does \(UNAVAILABLE: no entry\)"),
    ],
)
def test_a_cluster_that_refuses_is_quoted(status: grpc.StatusCode, said: str) -> None:
    with grpc_server(GCS, status=status) as port, pytest.raises(RayAddressError, match=said):
        require_cluster(f"127.0.0.1:{port}", "--ray.address")


def test_a_server_that_only_greets_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "TIMEOUT_S", 0.5)
    with listening(SETTINGS_FRAME) as port, pytest.raises(RayAddressError, match="does not answer as Ray"):
        require_cluster(f"127.0.0.1:{port}", "RAY_ADDRESS")


def test_a_full_backlog_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops packets: the kernel answers no SYN while the queue of a listening socket is full."""
    monkeypatch.setattr(address, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as waiting:
        waiting.connect(server.getsockname())
        with pytest.raises(RayAddressError, match="does not answer within"):
            require_cluster(f"127.0.0.1:{server.getsockname()[1]}", "RAY_ADDRESS")


def test_the_greeting_of_tls_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listening(b"") as port:
        assert address.greets("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True)),
        *(("LOCALHOST.", True), ("10.0.0.1", False), ("0.0.0.0", False), ("localhost.x", False), ("", False)),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@contextmanager
def web_server(status: int, body: bytes, delay_s: float = 0.0) -> Iterator[str]:
    """The address of a web server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay_s)
            with suppress(BrokenPipeError):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_dashboard_is_recognised() -> None:
    with web_server(200, b'{"version": "4", "ray_version": "2.60.0"}') as url:
        require_dashboard(url, "--address")
        require_dashboard(f"{url}/", "--address")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "what listens there is not Ray"),
        (404, b"ray_version", "what listens there is not Ray"),
        (401, b"", "asks for a token: set RAY_AUTH_MODE=token"),
    ],
)
def test_another_page_is_no_dashboard(status: int, body: bytes, said: str) -> None:
    with web_server(status, body) as url, pytest.raises(RayAddressError, match=rf"--address {url}.*{said}"):
        require_dashboard(url, "--address")


def test_a_token_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise AuthenticationError("RAY_AUTH_TOKEN_PATH is set but file cannot be opened: /x. Ensure that")

    monkeypatch.setattr(address, "_ask", fails)
    monkeypatch.setattr(address, "_get", fails)
    said = "no token can be sent: RAY_AUTH_TOKEN_PATH is set but file cannot be opened: /x; set RAY_AUTH_MODE"
    with listening(SETTINGS_FRAME) as port, pytest.raises(RayAddressError, match=said):
        require_cluster(f"127.0.0.1:{port}", "--ray.address")
    with pytest.raises(RayAddressError, match=said):
        require_dashboard("http://127.0.0.1:1", "--address")


@pytest.mark.parametrize("wrong", ["", "127.0.0.1:8265", "ray://head:10001", "http://", "http:///x", "auto"])
def test_what_is_no_address_of_a_dashboard_is_refused(wrong: str) -> None:
    with pytest.raises(RayAddressError, match=r"name the dashboard's address, such as http://127.0.0.1:8265"):
        require_dashboard(wrong, "--address")


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:99999", "http://[::1", "http://a b", "http://x..y"])
def test_an_impossible_address_of_a_dashboard_is_refused(wrong: str) -> None:
    with pytest.raises(RayAddressError, match="--address"):
        require_dashboard(wrong, "--address")


def test_a_dashboard_that_is_gone_costs_seconds(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RayAddressError, match=rf"--address .*:{closed_port}: .*Connection refused; look at"):
        require_dashboard(f"http://127.0.0.1:{closed_port}", "--address")
    monkeypatch.setattr(address, "DASHBOARD_TIMEOUT_S", 0.3)
    with listening(None) as port, pytest.raises(RayAddressError, match="does not answer within"):
        require_dashboard(f"http://127.0.0.1:{port}", "--address")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as waiting:
        waiting.connect(server.getsockname())
        with pytest.raises(RayAddressError, match="does not answer within"):
            require_dashboard(f"http://127.0.0.1:{server.getsockname()[1]}", "--address")
    with web_server(200, b"", delay_s=1.0) as url, pytest.raises(RayAddressError, match="does not answer"):
        require_dashboard(url, "--address")
