"""One connection to an MCP server: it starts, finds the tool, and says in a sentence why it cannot.

In: a McpConfig. Out: the SDK's Client, connected over standard streams or Streamable HTTP, and the
declaration of the tool. Values of environment variables go to the server only.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from difflib import get_close_matches

import httpx2
from mcp import Client
from mcp.client import Transport
from mcp.client.stdio import DEFAULT_INHERITED_ENV_VARS
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import Implementation, ServerNotification, Tool, ToolListChangedNotification

from tools_service.base.errors import brief
from tools_service.base.printable import printable
from tools_service.base.version import __version__
from tools_service.contract.tool import ToolUnavailableError
from tools_service.remote.settings import McpConfig, read_variables
from tools_service.remote.stdio import ANSWER_TOO_LONG, ServerProcess

_MAX_PAGES = 1_000  # of a list of tools
_SHOWN_NAMES = 5


class McpServerError(ToolUnavailableError):
    """A server cannot be reached, or does not offer the tool as it is needed."""


class NoSuchToolError(McpServerError):
    """A server answers, but does not offer the tool."""


class McpConnection:
    """A connection that can be opened once."""

    def __init__(
        self, settings: McpConfig, on_end: Callable[[], None], on_change: Callable[[], None]
    ) -> None:
        """`on_end` is called when a server's process ends, `on_change` when its list of tools changes."""
        self._settings = settings
        self._on_end = on_end
        self._on_change = on_change
        self._process: ServerProcess | None = None
        self._status: str | None = None  # of the last HTTP response that was an error

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """Be connected during the block. `explain` makes a sentence of what is raised, also in the block."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            if settings.command:
                inherited = (name for name in DEFAULT_INHERITED_ENV_VARS if name in os.environ)
                environment = {name: os.environ[name] for name in inherited} | read_variables(settings.env)
                self._process = ServerProcess(
                    settings.command, environment, settings.max_message_bytes, self._on_end
                )
                transport: Transport = self._process.connect()
            else:
                assert settings.url
                http_client = await stack.enter_async_context(self._http_client())
                transport = streamable_http_client(
                    settings.url, http_client=http_client, max_sse_event_size=settings.max_message_bytes
                )
            information = Implementation(name="toolformer-on-ray", version=__version__)
            client = Client(transport, message_handler=self._notice, client_info=information, cache=None)
            yield await stack.enter_async_context(client)

    def kill(self) -> None:
        """End the server's process at once, if it is one of this machine."""
        if self._process:
            self._process.kill()

    def explain(self, error: BaseException) -> McpServerError:
        """Return `error` as one of ours, once the connection is closed."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, McpServerError):
            return error
        process, start_s = self._process, self._settings.start_s
        said = f": {process.last_words}" if process and process.last_words else ""
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            reason = f"{error.strerror or error}; install the program, or correct command"
        elif isinstance(error, TimeoutError):
            reason = f"it was not ready after {start_s:g} s (start_s){said}"
        elif process and process.exit_code is not None:
            reason = f"it ended with exit code {process.exit_code}{said}"
        elif self._status:
            reason = f"it answers {self._status}"
        else:
            reason = f"{brief(error)}{said}"
        return McpServerError(f"MCP server {server_name(self._settings)}: {reason}")

    async def _notice(self, message: ServerNotification | Exception) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._on_change()

    def _http_client(self) -> httpx2.AsyncClient:
        settings = self._settings
        values = read_variables(settings.headers.values())
        headers = {name: values[variable] for name, variable in settings.headers.items()}
        return httpx2.AsyncClient(
            headers=headers | {"Accept-Encoding": "identity"},  # a few bytes could become gigabytes
            timeout=httpx2.Timeout(settings.start_s, read=None),  # calls have their own deadlines
            limits=httpx2.Limits(max_connections=settings.calls_per_session + 4),
            event_hooks={"response": [self._check_response]},
        )

    async def _check_response(self, response: httpx2.Response) -> None:
        self._status = f"HTTP {response.status_code} {response.reason_phrase}" if response.is_error else None
        if "json" in response.headers.get("Content-Type", ""):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._settings.max_message_bytes)


class _BoundedStream(httpx2.AsyncByteStream):
    """The body of a response, of at most `limit` bytes; the SDK reads a body of JSON as a whole."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream = stream
        self._left = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx2.StreamError(ANSWER_TOO_LONG)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def find_tool(client: Client, settings: McpConfig) -> Tool:
    """The declaration of the tool. Raises NoSuchToolError, which names those that come nearest."""
    names: list[str] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if tool.name == settings.tool:
                return tool
            names.append(tool.name)
        cursor = page.next_cursor
        if not cursor:
            break
    near = get_close_matches(settings.tool, names, n=_SHOWN_NAMES) or names[:_SHOWN_NAMES]
    shown = ", ".join(printable(name, 60) for name in near) or "none"
    raise NoSuchToolError(
        f"MCP server {server_name(settings)}: it has no tool {settings.tool!r}; "
        + (
            f"of its {len(names)} tools the nearest are {shown}"
            if len(names) > len(near)
            else f"it has {shown}"
        )
    )


def is_too_long(error: MCPError) -> bool:
    """Whether an answer was dropped because of its length; the SDK says it in words."""
    return ANSWER_TOO_LONG in error.message or "byte limit" in error.message


def server_name(settings: McpConfig) -> str:
    """The server as messages name it."""
    return printable(settings.url or " ".join(settings.command), 120)
