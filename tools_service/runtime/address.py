"""Is a Ray cluster at an address? The answer takes seconds, where Ray itself would try for minutes.

In: an address as Ray takes it (HOST:PORT, ray://HOST:PORT, auto). Out: nothing, or a RayAddressError
that says what is wrong with it. The port must accept a connection, speak gRPC, as Ray's do, and answer the
first question that Ray asks: several ports of a cluster speak gRPC, and on the wrong one Ray waits for ever.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tools_service.base.errors import ConfigurationError

Answer = TypeVar("Answer")

TIMEOUT_S = 4.0  # of name resolution, TCP and the greeting together; and once more of the first question
DASHBOARD_TIMEOUT_S = 8.0  # it is one busy process; a node that joins can hold it up for seconds
LOCAL, AUTO, CLIENT = "local", "auto", "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"
TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token"
WANTED = "HOST:PORT (of Ray's GCS, often 6379), ray://HOST:PORT (often 10001), auto or local"

_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]@?#]+)):(?P<port>[0-9]{1,5})"
)
# HTTP/2 (RFC 9113, sections 3.4 and 4.1): what a client sends first, with an empty SETTINGS frame; a
# server's first frame is SETTINGS, too. The type is the fourth of a frame header's nine bytes.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADER_BYTES, _TYPE_AT = 4, 9, 3
_early: dict[tuple[str, int], Future[bool]] = {}
_MAX_ANSWER = 10_000  # bytes
_MAX_REASON = 200  # characters of a message of gRPC's
_EMPTY_SETTINGS = bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


class RayAddressError(ConfigurationError):
    """There is no Ray cluster at the address."""


def chosen_address(option: str | None, option_name: str) -> tuple[str, str]:
    """Return the address to use and the name of the setting that it comes from; "local" if none is set."""
    if option:
        return option, option_name
    return os.environ.get(ADDRESS_VARIABLE) or LOCAL, ADDRESS_VARIABLE


def require_cluster(address: str, source: str) -> None:
    """Raise RayAddressError, which names `source`, unless a Ray cluster listens at `address`.

    Ray is imported only if something there speaks gRPC."""
    host, port = split_address(address, source)
    say = f"{source} {address}: no Ray cluster there"
    remedy = "start it, or name another (local starts one on this machine)"
    try:
        is_ray = greets(host, port)
    except TimeoutError:
        message = f"{say}: {host}:{port} does not answer within {TIMEOUT_S:.0f} s; {remedy}"
        raise RayAddressError(message) from None
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RayAddressError(f"{say}: {host}:{port}: {reason}; {remedy}") from None
    if not is_ray:
        raise RayAddressError(
            f"{say}: what listens at {host}:{port} is not Ray, or Ray with TLS (RAY_USE_TLS); {remedy}"
        )
    import grpc  # type: ignore[import-untyped]

    try:
        with _naming_the_token(f"{source} {address}"):
            _ask(address, host, port)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise RayAddressError(f"{source} {address}: the cluster asks for a token: {TOKEN}") from None
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            kind = "Ray client server" if address.startswith(CLIENT) else "GCS"
            raise RayAddressError(f"{say}: the server is not a {kind} of Ray; name {WANTED}") from None
        reason = " ".join((error.details() or "").split())[:_MAX_REASON]
        raise RayAddressError(
            f"{say}: the server does not answer as Ray does ({error.code().name}: {reason}); {remedy}"
        ) from None


@contextmanager
def _naming_the_token(where: str) -> Iterator[None]:
    """RayAddressError in the place of Ray's, if this process has a token mode and no token to read."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        reason = str(error).partition(". ")[0]
        raise RayAddressError(f"{where}: no token can be sent: {reason}; {TOKEN}") from None


def _ask(address: str, host: str, port: int) -> None:
    """Ask what Ray asks first of the server that `address` names. grpc.RpcError says what is wrong."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc

    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with init_grpc_channel(target) as channel:
        if address.startswith(CLIENT):
            ping = ray_client_pb2.ClusterInfoRequest(  # type: ignore[attr-defined]
                type=ray_client_pb2.ClusterInfoType.PING  # type: ignore[attr-defined]
            )
            driver: Any = ray_client_pb2_grpc.RayletDriverStub(channel)  # type: ignore[no-untyped-call]
            driver.ClusterInfo(ping, timeout=TIMEOUT_S)
        else:
            alive = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
            gcs: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            gcs.CheckAlive(alive, timeout=TIMEOUT_S)


def require_dashboard(url: str, source: str) -> None:
    """Raise RayAddressError, which names `source`, unless the dashboard of a Ray cluster answers at `url`."""
    if not re.match(r"https?://[^/\s]", url):
        raise RayAddressError(
            f"{source} {url!r}: name the dashboard's address, such as http://127.0.0.1:8265"
        )
    say = f"{source} {url}: no Ray dashboard there"
    remedy = "look at the address that the cluster printed, or forward its port again"
    try:
        with _naming_the_token(f"{source} {url}"):
            status, body = _begin(lambda: _get(f"{url.rstrip('/')}/api/version")).result(DASHBOARD_TIMEOUT_S)
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # ValueError: an impossible port or name
        reason = getattr(error, "reason", error)  # of urllib's
        if isinstance(reason, TimeoutError):
            reason = f"it does not answer within {DASHBOARD_TIMEOUT_S:.0f} s"
        raise RayAddressError(f"{say}: {getattr(reason, 'strerror', None) or reason}; {remedy}") from None
    if status in (401, 403):
        raise RayAddressError(f"{source} {url}: the dashboard asks for a token: {TOKEN}")
    if status != 200 or b"ray_version" not in body:
        raise RayAddressError(f"{say}: what listens there is not Ray; {remedy}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take Ray's token to another server."""

    def redirect_request(self, *args: Any) -> None:
        """None: the redirect is the answer."""


_WITHOUT_REDIRECTS = urllib.request.build_opener(_NoRedirects)


def _get(url: str) -> tuple[int, bytes]:
    """The status and the beginning of the answer, with Ray's token if this process has one."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    request = urllib.request.Request(url, headers=get_auth_headers_if_auth_enabled({}))
    try:
        with _WITHOUT_REDIRECTS.open(request, timeout=DASHBOARD_TIMEOUT_S) as answer:
            return answer.status, answer.read(_MAX_ANSWER)
    except urllib.error.HTTPError as error:
        return error.code, b""


def split_address(address: str, source: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or ray://HOST:PORT. RayAddressError, which names `source`."""
    if re.match(r"https?://", address, re.IGNORECASE):
        raise RayAddressError(f"{source} {address!r}: that is a dashboard's address; name {WANTED}")
    match = _HOST_AND_PORT.fullmatch(address.removeprefix(CLIENT))
    if match is None or not 0 < int(match["port"]) < 65_536:
        raise RayAddressError(f"{source} {address!r}: not an address of Ray; name {WANTED}")
    return match["ipv6"] or match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def look_early(address: str) -> None:
    """Begin to look for the cluster at `address`; the next `greets` has the answer. A command imports for
    seconds before it joins, and a host that drops packets costs seconds, too. Never fails."""
    with suppress(RayAddressError):
        host, port = split_address(address, "")
        _early[host, port] = _begin(lambda: _greets(host, port))


def greets(host: str, port: int) -> bool:
    """Whether what listens there speaks gRPC (HTTP/2), as Ray does.

    Raises TimeoutError, another OSError, or UnicodeError for a host that no resolver takes.
    """
    begun = _early.pop((host, port), None)
    return (begun or _begin(lambda: _greets(host, port))).result(TIMEOUT_S)


def _begin(ask: Callable[[], Answer]) -> Future[Answer]:
    """What `ask` will return. A thread of its own, because a resolver cannot be given a time limit."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="probe", daemon=True).start()
    return future


def _greets(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True  # the rest is for those who have its keys
        connection.sendall(_HTTP2_PREFACE + _EMPTY_SETTINGS)
        header = b""
        while len(header) < _HEADER_BYTES and (part := connection.recv(_HEADER_BYTES - len(header))):
            header += part
    return len(header) == _HEADER_BYTES and header[_TYPE_AT] == _SETTINGS
