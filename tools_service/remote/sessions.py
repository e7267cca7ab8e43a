"""A pool of sessions with an MCP server, which answers lists of calls before their deadline.

In: arguments of calls. Out: a result or a reason for each. Calls go to the session with the fewest
unanswered ones and are pipelined over it. A session that breaks is opened again, after a growing pause;
its calls are repeated once if the tool allows it. A server that answers nothing until a deadline is ended
and started again. A server that offers the tool no more, or with other parameters, has no more calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcp import Client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolResult, Tool
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from tools_service.contract.tool import (
    DEADLINE,
    MALFORMED_ANSWER,
    TOOL_CHANGED,
    UNREACHABLE,
    ToolResult,
)
from tools_service.remote.connection import McpConnection, NoSuchToolError, find_tool, is_too_long
from tools_service.remote.settings import McpConfig

logger = logging.getLogger(__name__)

MAX_STARTS = 3  # failed starts of every session after which calls no longer wait for one
MIN_PAUSE_S = 0.1  # before a session is opened again
MAX_PAUSE_S = 30.0
HEALTHY_S = 10.0  # a session of this age did not fail at its start
_SESSION_TERMINATED = "Session terminated"  # the SDK's words for a server that forgot the session


class Reader(Protocol):
    """What makes results and reasons of a server's answers."""

    def result(self, answer: CallToolResult) -> ToolResult:
        """A result, or the reason for none."""
        ...

    def error(self, error: MCPError) -> ToolResult:
        """The reason in an error."""
        ...


@dataclass(eq=False)
class _Call:
    arguments: Mapping[str, Any]
    answer: asyncio.Future[ToolResult]
    attempts: int = 0
    sent_at: float = 0.0
    session: Session | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def finish(self, answer: ToolResult) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class SessionPool:
    """The sessions of one tool. All methods run on one event loop."""

    def __init__(self, settings: McpConfig, reader: Reader) -> None:
        self.settings = settings
        self.reader = reader
        self.tool: Tool | None = None
        """The tool as it was first declared."""
        self._sessions = [Session(self) for _ in range(settings.sessions)]
        self._waiting: deque[_Call] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Tool:
        """Open the sessions, and return the tool's declaration once one is open. Raises McpServerError."""
        first = self._sessions[0]
        running = asyncio.create_task(first.run())
        opened = asyncio.create_task(first.opened.wait())
        self._tasks.append(running)
        await asyncio.wait([running, opened], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if running.done():
            running.result()
        assert self.tool
        self._tasks += [asyncio.create_task(session.run()) for session in self._sessions[1:]]
        return self.tool

    async def close(self) -> None:
        """End the sessions and their servers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End the servers at once."""
        for session in self._sessions:
            session.kill()

    async def answer(self, calls: Sequence[Mapping[str, Any]], deadline_s: float) -> list[ToolResult]:
        """A result or reason for each call, after `deadline_s` seconds at the latest."""
        loop = asyncio.get_running_loop()
        pending = [_Call(arguments, loop.create_future()) for arguments in calls]
        self._waiting.extend(pending)
        self.dispatch()
        await asyncio.wait([call.answer for call in pending], timeout=deadline_s)
        for call in pending:
            if not call.answer.done():
                self._give_up(call)
        return [call.answer.result() for call in pending]

    def dispatch(self) -> None:
        """Give waiting calls to sessions that have room, or finish them if there is no hope."""
        while self._waiting:
            usable = [session for session in self._sessions if session.is_usable]
            reason = None if usable else self._why_hopeless()
            session = min(usable, key=lambda session: len(session.unanswered), default=None)
            if reason is None and (session is None or not session.has_room):
                return
            call = self._waiting.popleft()
            if reason is not None:
                call.finish(ToolResult(reason=reason))
            elif session and not call.answer.done():
                session.send(call)

    def lost(self, call: _Call) -> None:
        """Repeat a call whose session broke once, if the tool declares that this has no further effect."""
        hints = self.tool.annotations if self.tool else None
        if call.attempts < 2 and hints and (hints.read_only_hint or hints.idempotent_hint):
            self._waiting.appendleft(call)
        else:
            call.finish(ToolResult(reason=UNREACHABLE))

    def _why_hopeless(self) -> str | None:
        if any(session.has_changed for session in self._sessions):
            return TOOL_CHANGED
        if all(session.failed_starts >= MAX_STARTS for session in self._sessions):
            return UNREACHABLE
        return None

    def _give_up(self, call: _Call) -> None:
        """Settle a call at its deadline; a session that has answered nothing since it was sent hangs."""
        call.finish(ToolResult(reason=DEADLINE))
        if call.task:
            call.task.cancel()
        if call.session and call in call.session.unanswered and call.session.answered_at < call.sent_at:
            call.session.restart("it answered nothing until a deadline")


class Session:
    """A session that is opened again whenever it breaks."""

    def __init__(self, pool: SessionPool) -> None:
        self._pool = pool
        self._client: Client | None = None  # while it is open
        self._connection: McpConnection | None = None
        self._events = asyncio.Event()
        self._is_broken = False
        self._list_changed = False
        self.opened = asyncio.Event()
        self.has_changed = False
        """Whether the server no longer offers the tool as it was first declared."""
        self.failed_starts = 0
        self.answered_at = 0.0
        self.unanswered: set[_Call] = set()

    @property
    def is_usable(self) -> bool:
        return self._client is not None and not self._is_broken and not self.has_changed

    @property
    def has_room(self) -> bool:
        return len(self.unanswered) < self._pool.settings.calls_per_session

    async def run(self) -> None:
        """Keep the session open until cancelled. Raises McpServerError if no session was open yet."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            self._connection = connection = McpConnection(
                self._pool.settings, on_end=self._break, on_change=self._notice_change
            )
            self._is_broken = False
            began = clock()
            try:
                await self._serve(connection)
            except Exception as error:  # whatever the SDK or the server raises ends this session only
                problem = connection.explain(error)
                if self._pool.tool is None:
                    raise problem from None
                logger.warning("%s", problem)
                self.has_changed = isinstance(problem, NoSuchToolError)
                self.failed_starts += not self.opened.is_set()
            finally:
                self._client = None
            failures = 1 if clock() - began > HEALTHY_S else failures + 1
            self.opened.clear()
            self._pool.dispatch()
            await asyncio.sleep(min(MIN_PAUSE_S * 2 ** (failures - 1), MAX_PAUSE_S))

    def send(self, call: _Call) -> None:
        """Send a call; its answer comes later."""
        call.attempts += 1
        call.sent_at = asyncio.get_running_loop().time()
        call.session = self
        self.unanswered.add(call)
        call.task = asyncio.create_task(self._ask(call))

    def restart(self, why: str) -> None:
        """End the session and its server, which starts again."""
        if self._connection and not self._is_broken:
            logger.warning("MCP server of %s: %s; it is started again", self._pool.settings.tool, why)
            self.kill()
            self._break()

    def kill(self) -> None:
        """End the server's process, if it is one of this machine."""
        if self._connection:
            self._connection.kill()

    async def _serve(self, connection: McpConnection) -> None:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._pool.settings.start_s):
                client = await stack.enter_async_context(connection.open())
            await self._check_tool(client)
            self._client = client
            self.failed_starts = 0
            self.opened.set()
            listener = asyncio.create_task(self._listen(client))
            stack.callback(listener.cancel)
            self._pool.dispatch()
            while not self._is_broken:
                await self._events.wait()
                self._events.clear()
                if self._list_changed and not self._is_broken:
                    self._list_changed = False
                    await self._check_tool(client)
                    self._pool.dispatch()

    async def _check_tool(self, client: Client) -> None:
        """Compare the tool with its first declaration."""
        try:
            async with asyncio.timeout(self._pool.settings.start_s):
                tool = await find_tool(client, self._pool.settings)
        except NoSuchToolError as error:
            if self._client is None:
                raise
            logger.warning("%s", error)
            self.has_changed = True
            return
        if self._pool.tool is None:
            self._pool.tool = tool
        self.has_changed = _interface(tool) != _interface(self._pool.tool)
        if self.has_changed:
            logger.warning("the MCP tool %s has other parameters than at its start", tool.name)

    async def _listen(self, client: Client) -> None:
        """Wait for changes of the list of tools; older protocols notify without being asked."""
        tools = client.server_capabilities.tools
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS and tools and tools.list_changed:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._notice_change()
            except (MCPError, SubscriptionLost, TimeoutError):
                pass
            self._notice_change()  # nothing tells of further changes, and the server may be another

    def _notice_change(self) -> None:
        self._list_changed = True
        self._events.set()

    def _break(self) -> None:
        self._is_broken = True
        self._events.set()

    async def _ask(self, call: _Call) -> None:
        clock = asyncio.get_running_loop().time
        client = self._client
        try:
            if client is None:
                raise MCPError(CONNECTION_CLOSED, "closed")
            result = await client.call_tool(self._pool.settings.tool, dict(call.arguments))
            self.answered_at = clock()
            call.finish(self._pool.reader.result(result))
        except MCPError as error:
            if _is_lost(error):
                self._break()
                self._pool.lost(call)
            else:
                self.answered_at = clock()
                call.finish(self._pool.reader.error(error))
        except Exception as error:  # not what MCP allows, or not what the tool declares
            logger.warning("MCP tool %s: %s: %.200s", self._pool.settings.tool, type(error).__name__, error)
            self.answered_at = clock()
            call.finish(ToolResult(reason=MALFORMED_ANSWER))
        finally:
            self.unanswered.discard(call)
            self._pool.dispatch()


def _interface(tool: Tool) -> tuple[Any, ...]:
    """What must stay as it was while the tool is used."""
    hints = tool.annotations
    return tool.input_schema, bool(hints and hints.read_only_hint)


def _is_lost(error: MCPError) -> bool:
    """Whether a call has no answer because its session is gone."""
    if is_too_long(error):
        return False
    is_forgotten = error.code == INVALID_REQUEST and error.message == _SESSION_TERMINATED
    return error.code == CONNECTION_CLOSED or is_forgotten
