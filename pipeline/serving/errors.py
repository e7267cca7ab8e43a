"""Errors of the endpoint in OpenAI's shape: {"error": {message, type, param, code}}.

In: what went wrong. Out: a JSON object, a response with its status, or a line of a stream.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from pipeline.inference.generation import PromptError
from tools_service.base.errors import ToolformerError

INVALID = "invalid_request_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PROMPT_CODES = {"too_long": "context_length_exceeded"}
RETRY_AFTER_S = 1


class ApiError(ToolformerError):
    """A request that gets no answer, with the status and the fields of OpenAI's errors."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _TYPES.get(self.status, INVALID if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """The response. Clients read from Retry-After when to ask again."""
        retry = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        return JSONResponse(self.body(), self.status, {**retry, **(headers or {})})


def queue_full() -> ApiError:
    """All replicas are busy, and no more prompts may wait."""
    message = "too many prompts are waiting (--max-queued); try again later"
    return ApiError(429, message, code="queue_full")


def replica_lost() -> ApiError:
    """The process that decoded the prompt has ended."""
    message = "the replica that decoded this prompt was lost; send the request again"
    return ApiError(503, message, code="replica_lost")


def refused_prompt(error: PromptError, param: str) -> ApiError:
    """The prompt cannot be continued."""
    return ApiError(400, str(error), param=param, code=_PROMPT_CODES.get(error.reason, "invalid_prompt"))
