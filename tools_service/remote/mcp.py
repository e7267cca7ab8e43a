"""A tool of an MCP server, as a tool like any other (paper section 3).

In: a declaration with ``mcp = {command = […] or url = "…", tool = "…"}``. The one string of a call becomes
arguments by the JSON schema that the server declares. Out: the text of the answer; errors as reasons. A
tool that is not declared read-only is refused unless `allow_writes` is set: a model that learns to call
tools tries anything.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent, Tool

from tools_service.base.printable import printable
from tools_service.contract.arguments import CallArguments, Style
from tools_service.contract.parameters import ParametersError
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult, ToolUnavailableError
from tools_service.remote.connection import McpServerError, is_too_long, server_name
from tools_service.remote.sessions import SessionPool
from tools_service.remote.settings import DEADLINE_SHARE, McpConfig, read_variables
from tools_service.remote.stdio import ANSWER_TOO_LONG

T = TypeVar("T")

TOOL_ERROR = "tool error"
NOT_TEXT = "not text"
_CLOSE_S = 10.0
_MAX_REASON = 120  # characters of a server's words
_MIN_SECRET = 4  # characters of a value that is hidden in messages


class McpTool:
    """A tool of an MCP server. Starts the sessions; `close`, or the end of the object, ends them."""

    Config = McpConfig

    def __init__(
        self,
        settings: McpConfig,
        name: str = "",
        parameters: Mapping[str, Any] | None = None,
        style: Style | None = None,
    ) -> None:
        """`parameters` replaces the server's JSON schema in reading calls.

        Raises McpServerError if the server does not start, or does not offer the tool as needed.
        """
        self.name = name or settings.tool
        self._settings = settings
        self._pool = SessionPool(settings, AnswerReader(_secrets(settings)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name=f"mcp {self.name}", daemon=True).start()
        self.close = weakref.finalize(self, _close, self._loop, self._pool)
        """End the sessions and their servers."""
        try:
            tool = self._wait_for(self._pool.start())
            _require_read_only(tool, settings)
            self._arguments = _arguments(tool, settings, parameters, style)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, spec: ToolSpec, settings: McpConfig, tools: object) -> McpTool:
        """The tool that `spec` declares."""
        return cls(settings, spec.name, spec.parameters, spec.arguments)

    @classmethod
    def prepare(cls, settings: McpConfig) -> None:
        """Start one session and end it: what is wrong is found before anything else starts."""
        cls(settings.model_copy(update={"sessions": 1})).close()

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The text of each answer, or a reason."""
        read = [self._read_call(call) for call in inputs]
        calls = [arguments for arguments in read if not isinstance(arguments, str)]
        deadline_s = DEADLINE_SHARE * self._settings.deployment.deadline_s
        answers = iter(self._wait_for(self._pool.answer(calls, deadline_s)) if calls else ())
        return [
            ToolResult(reason=arguments) if isinstance(arguments, str) else next(answers)
            for arguments in read
        ]

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _read_call(self, call: ToolInput) -> dict[str, Any] | str:
        """The arguments of a call, or the reason for none."""
        arguments = self._arguments.parse(call.text)
        if self._settings.date_parameter and call.date and not isinstance(arguments, str):
            arguments[self._settings.date_parameter] = call.date
        return arguments


class AnswerReader:
    """Makes results and reasons of a server's answers. It knows no tool, so that pools keep none alive."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """`secrets` are hidden in reasons."""
        self._secrets = secrets

    def result(self, answer: CallToolResult) -> ToolResult:
        """The text of an answer, or the reason for none."""
        texts = [block.text for block in answer.content if isinstance(block, TextContent)]
        if answer.is_error:
            return ToolResult(reason=self._reason(texts[0] if texts else ""))
        if others := [block.type for block in answer.content if not isinstance(block, TextContent)]:
            return ToolResult(reason=f"{NOT_TEXT}: {others[0]}")
        return ToolResult(result="\n".join(texts))

    def error(self, error: MCPError) -> ToolResult:
        """The reason that a server gives instead of an answer."""
        return ToolResult(reason=ANSWER_TOO_LONG if is_too_long(error) else self._reason(error.message))

    def _reason(self, said: str) -> str:
        for secret in self._secrets:
            said = said.replace(secret, "***")
        said = printable(" ".join(said[: 4 * _MAX_REASON].split()), _MAX_REASON)
        return f"{TOOL_ERROR}: {said}" if said else TOOL_ERROR


def _require_read_only(tool: Tool, settings: McpConfig) -> None:
    hints = tool.annotations
    if not settings.allow_writes and not (hints and hints.read_only_hint):
        raise McpServerError(
            f"MCP server {server_name(settings)}: the tool {tool.name} does not declare itself read-only "
            "(readOnlyHint), so each call that is tried may change something; set allow_writes = true to "
            "allow it"
        )


def _arguments(
    tool: Tool, settings: McpConfig, parameters: Mapping[str, Any] | None, style: Style | None
) -> CallArguments:
    """How calls give the arguments; the date is none of theirs."""
    schema = dict(parameters if parameters is not None else tool.input_schema)
    date = settings.date_parameter
    if date is not None:
        if date not in tool.input_schema.get("properties", {}):
            raise McpServerError(
                f"MCP server {server_name(settings)}: date_parameter = {date!r}: the tool {tool.name} has no "
                "such parameter"
            )
        properties = {name: part for name, part in schema.get("properties", {}).items() if name != date}
        required = [name for name in schema.get("required", ()) if name != date]
        schema |= {"properties": properties, "required": required}
    try:
        return CallArguments(schema, style)
    except ParametersError as error:
        raise McpServerError(f"MCP server {server_name(settings)}: the tool {tool.name}: {error}") from error


def _secrets(settings: McpConfig) -> list[str]:
    """What must not be in a message. Raises McpServerError if a variable is missing."""
    try:
        values = read_variables((*settings.env, *settings.headers.values())).values()
    except ToolUnavailableError as error:
        raise McpServerError(f"MCP server {server_name(settings)}: {error}") from error
    parts = {part for value in values for part in (value, value.rpartition(" ")[2])}
    return sorted((part for part in parts if len(part) >= _MIN_SECRET), key=len, reverse=True)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, pool: SessionPool) -> None:
    """End the sessions, then the loop."""
    closing = asyncio.run_coroutine_threadsafe(pool.close(), loop)
    try:
        closing.result(_CLOSE_S)
    except TimeoutError:
        pool.kill()
    loop.call_soon_threadsafe(loop.stop)
