"""A tool behind a URL that answers like our own HTTP endpoint (tools_service/serving/http.py).

In: a declaration with ``http = "http://host:8700/Tool"``. Each list of calls is one POST of a JSON list of
inputs (strings, or objects with text and date); the answer is a JSON list of objects with result and reason.
An endpoint that is not reached, or is overloaded, is asked again until the deadline.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx2

from tools_service.base.printable import printable
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import (
    DEADLINE,
    MALFORMED_ANSWER,
    OVERLOADED,
    UNREACHABLE,
    ToolInput,
    ToolResult,
    ToolUnavailableError,
    without_result,
)
from tools_service.remote.settings import DEADLINE_SHARE, HttpToolConfig, read_variables
from tools_service.remote.stdio import ANSWER_TOO_LONG

_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_MIN_PAUSE_S = 0.05
_MAX_PAUSE_S = 2.0


class HttpTool:
    """A tool behind a URL."""

    Config = HttpToolConfig

    def __init__(self, settings: HttpToolConfig, name: str = "") -> None:
        """Raises ToolUnavailableError if the variable with the token is missing."""
        self.name = name or settings.url.rstrip("/").rpartition("/")[2]
        self._settings = settings
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if settings.token:
            try:
                headers["Authorization"] = f"Bearer {read_variables([settings.token])[settings.token]}"
            except ToolUnavailableError as error:
                raise ToolUnavailableError(f"tool at {settings.url}: {error}") from error
        limits = httpx2.Limits(max_connections=settings.deployment.threads)
        self._client = httpx2.Client(headers=headers, limits=limits)

    @classmethod
    def create(cls, spec: ToolSpec, settings: HttpToolConfig, tools: object) -> HttpTool:
        """The tool that `spec` declares."""
        return cls(settings, spec.name)

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The endpoint's answers, or a reason for all."""
        if not inputs:
            return []
        body = json.dumps(
            [{"text": call.text, "date": call.date} if call.date else call.text for call in inputs]
        ).encode()
        deadline = time.monotonic() + DEADLINE_SHARE * self._settings.deployment.deadline_s
        pause_s = _MIN_PAUSE_S
        while True:
            answers = self._post(body, deadline, len(inputs))
            if not isinstance(answers, str):
                return answers
            if answers not in (OVERLOADED, UNREACHABLE) or time.monotonic() + pause_s >= deadline:
                return without_result(inputs, answers)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _post(self, body: bytes, deadline: float, expected: int) -> list[ToolResult] | str:
        """The answers to one request, or the reason for none."""
        left_s = max(deadline - time.monotonic(), 0.001)
        try:
            with self._client.stream(
                "POST", self._settings.url, content=body, timeout=httpx2.Timeout(left_s)
            ) as response:
                if response.status_code in _BUSY:
                    return OVERLOADED
                answer = bytearray()
                for chunk in response.iter_raw():
                    answer += chunk
                    if len(answer) > self._settings.max_answer_bytes:
                        return ANSWER_TOO_LONG
                    if time.monotonic() > deadline:
                        return DEADLINE
        except httpx2.TimeoutException:
            return DEADLINE
        except httpx2.HTTPError:
            return UNREACHABLE
        if response.status_code != HTTPStatus.OK:
            return f"tool error: HTTP {response.status_code}{_error_in(answer)}"
        return _parse_answers(answer, expected) or MALFORMED_ANSWER


def _parse_answers(answer: bytes | bytearray, expected: int) -> list[ToolResult] | None:
    """The results in an answer; None unless they are `expected` results or reasons."""
    values = _parse_json(answer)
    if not isinstance(values, list) or len(values) != expected:
        return None
    results = []
    for value in values:
        result, reason = (
            (value.get("result"), value.get("reason")) if isinstance(value, dict) else (None, None)
        )
        if (result is None) == (reason is None) or not isinstance(result or reason or "", str):
            return None
        results.append(ToolResult(result, reason))
    return results


def _error_in(answer: bytes | bytearray) -> str:
    value = _parse_json(answer)
    said = value.get("error") if isinstance(value, dict) else None
    return f": {printable(said, 120)}" if isinstance(said, str) else ""


def _parse_json(answer: bytes | bytearray) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None
