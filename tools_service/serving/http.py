"""The tools over HTTP, optional: `python -m tools_service serve --http`.

    POST /TOOL    a JSON list of inputs (strings, or {"text": …, "date": "YYYY-MM-DD"})
                  → a JSON list of {"result": …, "reason": …}, one of the two null, in order
    GET /health   {"tools": {TOOL: status}}; 200 if all are running, else 503

It listens on this machine only. On any other address, every POST must carry `Authorization: Bearer
TOKEN`; a token that is set is always required. Errors are {"error": …}: 400 malformed, 401 no
token, 404 no such tool, 408 too slow, 413 too large. Requests go through a ToolClient: deadlines,
cache, cleaning. It knows no Ray, and no TLS: use a proxy where the network is not trusted.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
import reprlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tools_service.base.errors import ConfigurationError
from tools_service.config import HttpConfig
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import ToolInput

TOKEN_VARIABLE = "TOOLS_TOKEN"
BODY_TIMEOUT_S = 30.0
RUNNING = "RUNNING"

GetStatuses = Callable[[], Mapping[str, str]]


class HttpError(ConfigurationError):
    """The endpoint cannot be opened as configured."""


def read_token(config: HttpConfig) -> str | None:
    """Return the token to require, if any; HttpError if it is missing or cannot be sent."""
    source, token = f"the variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if config.token_file:
        source = f"--http.token-file {config.token_file}"
        try:
            token = config.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HttpError(f"{source}: {error}") from error
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise HttpError(f"{source}: a token is one word of visible ASCII characters")
    if token is None and not _is_loopback(config.host):
        raise HttpError(
            f"--http.host {config.host}: others can reach it, so callers must show a token; put one into "
            f"{TOKEN_VARIABLE} or a file (--http.token-file), or listen on 127.0.0.1"
        )
    return token


def bind_socket(config: HttpConfig) -> socket.socket:
    """Return a listening socket; HttpError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2_048)
    except OSError as error:
        raise HttpError(f"--http.host {config.host} --http.port {config.port}: {error}") from error


def create_server(app: Starlette) -> uvicorn.Server:
    """Return a server for `run(sockets=[bind_socket(config)])`, which ends on SIGINT or SIGTERM."""
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off"}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **options))


def create_app(
    client: ToolClient, tools: Sequence[str], config: HttpConfig, token: str | None, statuses: GetStatuses
) -> Starlette:
    """Return the application that asks `client`; `statuses` gives the status of each tool."""

    async def call(request: Request) -> Response:
        _authorize(request, token)
        tool = request.path_params["tool"]
        if tool not in tools:
            raise HTTPException(404, f"no such tool; there are {', '.join(tools)}")
        inputs = _parse_inputs(await _read_body(request, config.max_body_bytes), config.max_inputs)
        answers = await client.acall(tool, inputs)
        return JSONResponse([{"result": answer.result, "reason": answer.reason} for answer in answers])

    def health(request: Request) -> Response:
        current = dict(statuses())
        is_healthy = all(current.get(tool) == RUNNING for tool in tools)
        return JSONResponse({"tools": current}, 200 if is_healthy else 503)

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[Route("/health", health, methods=["GET"]), Route("/{tool}", call, methods=["POST"])],
        exception_handlers={HTTPException: refuse},
    )


def _authorize(request: Request, token: str | None) -> None:
    sent = request.headers.get("authorization", "").encode("utf-8")
    if token is not None and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
        message = "send the token: Authorization: Bearer TOKEN"
        raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; refuse it as soon as it is known to be larger than `max_bytes`."""
    body = bytearray()
    declared = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes or (declared.isdecimal() and int(declared[:20]) > max_bytes):
                    raise HTTPException(413, f"more than {max_bytes} bytes: send shorter lists")
    except TimeoutError:
        raise HTTPException(408, f"the request took more than {BODY_TIMEOUT_S:.0f} s to arrive") from None
    return bytes(body)


def _parse_inputs(body: bytes, max_inputs: int) -> list[ToolInput]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    if not isinstance(values, list):
        raise HTTPException(400, f"wanted a list of inputs, got {reprlib.repr(values)}")
    if len(values) > max_inputs:
        raise HTTPException(413, f"{len(values)} inputs are more than {max_inputs}: send shorter lists")
    return [_parse_input(value, number) for number, value in enumerate(values)]


def _parse_input(value: Any, number: int) -> ToolInput:
    fields = {"text": value} if isinstance(value, str) else value
    if isinstance(fields, dict) and fields.keys() <= {"text", "date"}:
        text, date = fields.get("text"), fields.get("date")
        if isinstance(text, str) and isinstance(date, str | None):
            return ToolInput(text, date)
    wanted = 'a string or {"text": STRING, "date": STRING or null}'
    raise HTTPException(400, f"input {number}: wanted {wanted}, got {reprlib.repr(value)}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
