"""The HTTP interface: OpenAI's paths, /health, and a page to try the model by hand.

    GET  /v1/models, /v1/models/NAME
    POST /v1/completions, /v1/chat/completions   docs/serving.md lists the fields
    GET  /health                                 200 if a replica is ready, else 503
    GET  /                                       the page

In: a `Decode`, which gives the events of a prompt. Out: a FastAPI application. It knows no Ray. Hosts, pages
of other sites and the token are checked as for the tools (tools_service/serving/http.py). The page itself and
/health need no token.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from pipeline.inference.params import DecodingParams
from pipeline.serving.chat import Render
from pipeline.serving.choices import Arguments, Json, Reply
from pipeline.serving.decoding import Decode, Prompt, decode_all, unless_disconnected
from pipeline.serving.errors import ApiError
from pipeline.serving.protocol import ChatRequest, CompletionRequest, DecodingRequest, parse_request
from tools_service.config import HttpConfig
from tools_service.serving.http import read_body, require_allowed, require_known_host

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_CLOSED_BY_CLIENT = 499

Status = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether a replica is ready, and the details. It may block."""


class Endpoint:
    """What the paths share: the served model, its parameters, and how prompts are decoded."""

    def __init__(
        self,
        decode: Decode,
        params: DecodingParams,
        date: str | None,
        arguments: Arguments,
        render: Render,
        *,
        name: str,
        http: HttpConfig,
        token: str | None,
    ) -> None:
        self._decode, self._params, self._date = decode, params, date
        self._arguments, self._render = arguments, render
        self._http, self._token = http, token
        self.name, self._created = name, int(time.time())

    def model(self) -> Json:
        """The served model, as /v1/models has it, with the tools that it can call."""
        tools = [tool for tool in self._params.tools if tool not in self._params.tools_off]
        card = {"id": self.name, "object": "model", "created": self._created, "owned_by": "toolformer"}
        return {**card, "toolformer": {"tools": tools, "k": self._params.k}}

    def allow(self, request: Request) -> None:
        """HTTPException unless the request may be answered."""
        require_allowed(request, self._http, self._token)

    async def complete(self, request: Request) -> Response:
        """Continue one text or several."""
        self.allow(request)
        body = parse_request(CompletionRequest, await read_body(request, self._http.max_body_bytes))
        if len(body.prompt) > self._http.max_inputs:
            message = f"{len(body.prompt)} prompts are more than {self._http.max_inputs} (--http.max-inputs)"
            raise ApiError(400, message, param="prompt", code="too_many_prompts")
        return await self._answer(request, body, body.prompt, chat=False)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a chat."""
        self.allow(request)
        body = parse_request(ChatRequest, await read_body(request, self._http.max_body_bytes))
        self._require_model(body.model)
        return await self._answer(request, body, [self._render(body.messages)], chat=True)

    def _require_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            message = f"no model {name!r}; this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _answer(
        self, request: Request, body: DecodingRequest, prompts: Sequence[Prompt], *, chat: bool
    ) -> Response:
        self._require_model(body.model)
        params, date = body.params(self._params), body.date or self._date
        reply = Reply(self.name, len(prompts), self._arguments, chat=chat)
        field = "messages" if chat else "prompt"
        events = decode_all(self._decode, prompts, params, date, field, stream=bool(body.stream))
        if not body.stream:
            finished = await unless_disconnected(request, _finish(reply, events))
            return JSONResponse(reply.whole()) if finished else Response(status_code=_CLOSED_BY_CLIENT)
        # A prompt that is refused, or finds the queue full, has a status of its own: no stream begins.
        chunks = _chunks(reply, events, includes_usage=body.includes_usage)
        first = await unless_disconnected(request, anext(chunks))
        if first is None:
            return Response(status_code=_CLOSED_BY_CLIENT)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_lines(first, chunks), media_type="text/event-stream", headers=headers)


async def _finish(reply: Reply, events: AsyncGenerator[tuple[int, Any], None]) -> bool:
    async with aclosing(events):
        async for index, event in events:
            reply.choices[index].add(event)
    return True


async def _chunks(
    reply: Reply, events: AsyncGenerator[tuple[int, Any], None], *, includes_usage: bool
) -> AsyncGenerator[Json, None]:
    extra = {"usage": None} if includes_usage else {}
    opening = reply.opening()
    async with aclosing(events):
        async for index, event in events:
            for chunk in [*opening, *reply.chunks(index, event)]:
                yield {**chunk, **extra}
            opening = []
    if includes_usage:
        yield reply.usage_chunk()


async def _lines(first: Json, chunks: AsyncGenerator[Json, None]) -> AsyncIterator[str]:
    """Server-sent events. A stream that was cut off by an error ends with it, and without [DONE]."""
    async with aclosing(chunks):
        yield _event(first)
        try:
            async for chunk in chunks:
                yield _event(chunk)
        except ApiError as error:
            yield _event(error.body())
        except Exception:  # ends this stream alone
            logger.exception("a stream failed")
            yield _event(_server_failed().body())
        else:
            yield "data: [DONE]\n\n"


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _server_failed() -> ApiError:
    return ApiError(500, "the server failed; its log has the reason")


def create_app(endpoint: Endpoint, http: HttpConfig, status: Status) -> FastAPI:
    """The application around an endpoint."""
    app = FastAPI(title="Toolformer", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/v1/models")
    async def models(request: Request) -> Json:
        endpoint.allow(request)
        return {"object": "list", "data": [endpoint.model()]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Json:
        endpoint.allow(request)
        if name != endpoint.name:
            message = f"no model {name!r}; this server has {endpoint.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return endpoint.model()

    app.add_api_route("/v1/completions", endpoint.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", endpoint.chat, methods=["POST"], response_model=None)

    @app.get("/health")
    def health(request: Request) -> Response:
        require_known_host(request, http)
        is_ready, details = status()
        return JSONResponse(dict(details), 200 if is_ready else 503)

    @app.get("/")
    @app.get("/{file}")
    def page(request: Request, file: str = "index.html") -> Response:
        require_known_host(request, http)
        if file not in {path.name for path in PAGE.iterdir()}:
            raise HTTPException(404, f"no such path: /{file[:100]}")
        return FileResponse(PAGE / file, headers=_PAGE_HEADERS)

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail)).response(dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _server_failed().response()

    return app
