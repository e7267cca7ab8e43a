"""The tools over HTTP, optional: `python -m tools_service serve --http`.

    POST /TOOL    a JSON list of inputs (strings, or {"text": …, "date": "YYYY-MM-DD"})
                  → a JSON list of {"result": …, "reason": …}, one of the two null, in order
    GET /health   {"tools": {TOOL: state}}; 200 if all are running, else 503

Listens on this machine only; on any other address every POST must carry `Authorization: Bearer TOKEN`, and a
token that is set is always asked for. Errors are {"error": …}: 400 malformed, 401 no token, 404 no such tool,
408 too slow, 413 too large. Requests go through a ToolClient like everybody's: deadlines, cache, cleaning. It
knows nothing of Ray, and no TLS: put a proxy in front of it where the network is not trusted.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
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

Health = Callable[[], Mapping[str, str]]


class HttpError(ConfigurationError):
    """The endpoint cannot be opened as configured."""


def token_of(config: HttpConfig) -> str | None:
    """The token callers must send, None for nobody must; HttpError where one is needed and there is none."""
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


def listen(config: HttpConfig) -> socket.socket:
    """The socket, bound; HttpError if it cannot be."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2_048)
    except OSError as error:
        raise HttpError(f"--http.host {config.host} --http.port {config.port}: {error}") from error


def server(
    client: ToolClient, tools: Sequence[str], config: HttpConfig, token: str | None, health: Health
) -> uvicorn.Server:
    """The server, ready to `run(sockets=[listen(config)])`; it ends on SIGINT or SIGTERM."""
    app = ingress(client, tools, config, token, health)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5
    )
    return uvicorn.Server(settings)


def ingress(
    client: ToolClient, tools: Sequence[str], config: HttpConfig, token: str | None, health: Health
) -> Starlette:
    """The application that asks `client`."""

    async def ask(request: Request) -> Response:
        _authorize(request, token)
        tool = request.path_params["tool"]
        if tool not in tools:
            raise HTTPException(404, f"no such tool; there are {', '.join(tools)}")
        inputs = _inputs(await _body(request, config.max_body_bytes), config.max_inputs)
        answers = await client.acall(tool, inputs)
        return JSONResponse([{"result": one.result, "reason": one.reason} for one in answers])

    def state(request: Request) -> Response:
        states = dict(health())
        well = all(states.get(tool) == RUNNING for tool in tools)
        return JSONResponse({"tools": states}, 200 if well else 503)

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[Route("/health", state, methods=["GET"]), Route("/{tool}", ask, methods=["POST"])],
        exception_handlers={HTTPException: refuse},
    )


def _authorize(request: Request, token: str | None) -> None:
    shown = request.headers.get("authorization", "").encode("utf-8")
    if token is not None and not hmac.compare_digest(shown, f"Bearer {token}".encode()):
        headers = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "send the token: Authorization: Bearer TOKEN", headers)


async def _body(request: Request, most: int) -> bytes:
    """The whole body; refused as soon as it is known to be larger than `most` bytes."""
    body = bytearray()
    declared = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most or (declared.isdecimal() and int(declared[:20]) > most):
                    raise HTTPException(413, f"the request has more than {most} bytes: send shorter lists")
    except TimeoutError:
        raise HTTPException(408, f"the request took more than {BODY_TIMEOUT_S:.0f} s to arrive") from None
    return bytes(body)


def _inputs(body: bytes, most: int) -> list[ToolInput]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    if not isinstance(found, list):
        raise HTTPException(400, f"wanted a list of inputs, got {_kind(found)}")
    if len(found) > most:
        raise HTTPException(413, f"{len(found)} inputs are more than {most}: send shorter lists")
    return [_input(one, number) for number, one in enumerate(found)]


def _input(one: Any, number: int) -> ToolInput:
    if isinstance(one, str):
        return ToolInput(one)
    if not isinstance(one, dict):
        raise HTTPException(400, f"input {number}: wanted a string or an object, got {_kind(one)}")
    text, date = one.get("text"), one.get("date")
    if not isinstance(text, str) or not isinstance(date, str | None) or not one.keys() <= {"text", "date"}:
        raise HTTPException(400, f'input {number}: wanted {{"text": STRING, "date": STRING or null}}')
    return ToolInput(text, date)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
