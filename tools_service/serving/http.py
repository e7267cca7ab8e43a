"""The tools over HTTP, optional: `python -m tools_service serve --http`.

    POST /TOOL    a JSON list of inputs (strings, or {"text": …, "date": "YYYY-MM-DD"})
                  → a JSON list of {"result": …, "reason": …}, one of the two null, in order
    GET /health   {"tools": {TOOL: status}}; 200 if all are running, else 503

It listens on this machine only. On any other address, every POST must carry `Authorization: Bearer
TOKEN`; a token that is set is always required. Errors are {"error": …}: 400 malformed, 401 no
token, 403 a web page of another site, 404 no such tool, 408 too slow, 413 too large, 415 not JSON.
Web pages in a browser on this machine can send requests, too. They are known by the name that they
ask for (Host), by their site (Origin) or by the type of their forms. Requests go through a
ToolClient: deadlines, cache, cleaning. It knows no Ray, and no TLS: use a proxy where the network is
not trusted.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import reprlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from tools_service.base.errors import ConfigurationError
from tools_service.config import HttpConfig
from tools_service.contract.tool import ToolInput
from tools_service.runtime.address import is_loopback
from tools_service.tools.client import ToolClient

TOKEN_VARIABLE = "TOOLS_TOKEN"
HEADER_TIMEOUT_S = 15.0
BODY_TIMEOUT_S = 30.0
MAX_HEADER_BYTES = 64 * 2**10
RUNNING = "RUNNING"

_CLOSE = {"Connection": "close"}
_FORM = "application/x-www-form-urlencoded"

GetStatuses = Callable[[], Mapping[str, str]]


class HttpError(ConfigurationError):
    """The endpoint cannot be opened as configured."""


def read_token(config: HttpConfig, variable: str = TOKEN_VARIABLE) -> str | None:
    """Return the token to require, if any; HttpError if it is missing or cannot be sent."""
    source, token = f"the variable {variable}", os.environ.get(variable)
    if config.token_file:
        source = f"--http.token-file {config.token_file}"
        try:
            token = config.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HttpError(f"{source}: {error}") from error
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise HttpError(f"{source}: a token is one word of visible ASCII characters")
    if token is None and not is_loopback(config.host):
        raise HttpError(
            f"--http.host {config.host}: others can reach it, so callers must show a token; put one into "
            f"{variable} or a file (--http.token-file), or listen on 127.0.0.1"
        )
    return token


def bind_socket(config: HttpConfig) -> socket.socket:
    """Return a listening socket; HttpError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2_048)
    except OSError as error:
        raise HttpError(
            f"--http.host {config.host} --http.port {config.port}: {error}; "
            "choose another port, or 0 for a free one"
        ) from error


def create_server(app: Starlette) -> uvicorn.Server:
    """Return a server for `run(sockets=[bind_socket(config)])`, which ends on SIGINT or SIGTERM."""
    options: dict[str, Any] = {
        "http": _TimedProtocol,
        "ws": "none",
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "log_level": "warning",
        "access_log": False,
        "lifespan": "auto",
    }
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **options))


class _TimedProtocol(H11Protocol):
    """uvicorn's, which also closes connections that send no whole header in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_wait_after(None)

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()  # may begin the next request
        self._limit_wait_after(answered)

    def _limit_wait_after(self, request: object) -> None:
        self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_waiting, request)

    def _close_if_waiting(self, previous: object) -> None:
        if self.cycle is previous and not self.transport.is_closing():
            self.transport.close()


def create_app(
    client: ToolClient, tools: Sequence[str], config: HttpConfig, token: str | None, statuses: GetStatuses
) -> Starlette:
    """Return the application that asks `client`; `statuses` gives the status of each tool."""

    async def call(request: Request) -> Response:
        require_allowed(request, config, token)
        tool = request.path_params["tool"]
        if tool not in tools:
            raise HTTPException(404, f"no such tool; there are {', '.join(tools)}")
        inputs = _parse_inputs(await read_body(request, config.max_body_bytes), config.max_inputs)
        answers = await client.acall(tool, inputs)
        return JSONResponse([{"result": answer.result, "reason": answer.reason} for answer in answers])

    def health(request: Request) -> Response:
        require_known_host(request, config)
        current = dict(statuses())
        is_healthy = all(current.get(tool) == RUNNING for tool in tools)
        return JSONResponse({"tools": current}, 200 if is_healthy else 503)

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    app = Starlette(
        routes=[Route("/health", health, methods=["GET"]), Route("/{tool}", call, methods=["POST"])],
        exception_handlers={HTTPException: refuse},
    )
    app.router.redirect_slashes = False  # a redirect would lead to whatever Host says
    return app


def require_allowed(request: Request, config: HttpConfig, token: str | None) -> None:
    """Raise HTTPException unless the request names this endpoint, comes from no page, and has the token."""
    require_known_host(request, config)
    _refuse_web_pages(request)
    _authorize(request, token)


def require_known_host(request: Request, config: HttpConfig) -> None:
    """Refuse a page whose own name was made to lead to this machine's loopback (DNS rebinding).

    On other addresses only the token counts, because the names of this machine are not known here.
    """
    if not is_loopback(config.host):
        return
    known = {host.lower() for host in (config.host, *config.allowed_hosts)}
    for host in request.headers.getlist("host"):
        name = _host_name(f"//{host}")
        if name is None or not (is_loopback(name) or name in known):
            raise HTTPException(403, "not a name of this endpoint; allow it with --http.allowed-hosts")


def _refuse_web_pages(request: Request) -> None:
    """Refuse what a page of another site makes a browser send (cross-site request forgery)."""
    host = request.headers.get("host", "")
    origins = request.headers.getlist("origin")
    is_browser = bool(origins) or "sec-fetch-site" in request.headers
    if any(origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()) for origin in origins):
        raise HTTPException(403, "pages of other sites may not ask the tools")
    if not {"same-origin", "none"}.issuperset(request.headers.getlist("sec-fetch-site")):
        raise HTTPException(403, "pages of other sites may not ask the tools")
    sent_types = request.headers.getlist("content-type") or [""]
    content_types = {sent.partition(";")[0].strip().lower() for sent in sent_types}
    # curl -d calls everything a form; a browser says more about itself when it sends one.
    accepted = {"application/json"} if is_browser else {"application/json", "", _FORM}
    if not content_types <= accepted:
        raise HTTPException(415, "send JSON: Content-Type: application/json")


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _authorize(request: Request, token: str | None) -> None:
    sent = request.headers.get("authorization", "").encode("utf-8")
    if token is not None and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
        message = "send the token: Authorization: Bearer TOKEN"
        raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; refuse it as soon as it is known to be larger than `max_bytes`."""
    body = bytearray()
    declared = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes or (declared.isdecimal() and int(declared[:20]) > max_bytes):
                    message = f"more than {max_bytes} bytes: send shorter lists"
                    raise HTTPException(413, message, _CLOSE)
    except TimeoutError:
        message = f"the request took more than {BODY_TIMEOUT_S:.0f} s to arrive"
        raise HTTPException(408, message, _CLOSE) from None
    except ClientDisconnect:  # nobody reads this answer
        raise HTTPException(400, "the connection was closed before the whole request", _CLOSE) from None
    return bytes(body)


def _parse_inputs(body: bytes, max_inputs: int) -> list[ToolInput]:
    try:
        values = json.loads(body, object_pairs_hook=_fields, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    if not isinstance(values, list):
        raise HTTPException(400, f"wanted a list of inputs, got {reprlib.repr(values)}")
    if len(values) > max_inputs:
        raise HTTPException(413, f"{len(values)} inputs are more than {max_inputs}: send shorter lists")
    return [_parse_input(value, number) for number, value in enumerate(values)]


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _parse_input(value: Any, number: int) -> ToolInput:
    fields = {"text": value} if isinstance(value, str) else value
    if isinstance(fields, dict) and fields.keys() <= {"text", "date"}:
        text, date = fields.get("text"), fields.get("date")
        if isinstance(text, str) and isinstance(date, str | None):
            return ToolInput(text, date)
    wanted = 'a string or {"text": STRING, "date": STRING or null}'
    raise HTTPException(400, f"input {number}: wanted {wanted}, got {reprlib.repr(value)}")
