"""The transport to an MCP server that runs as a process of this machine, on its standard streams.

The SDK's own transport keeps lines of any length in memory, and does not say why a server ended. This one
drops longer lines, keeps the last line of standard error, and lets no server outlive this process: when this
process is killed, a shell whose standard input has closed kills the server's process group.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, jsonrpc_message_adapter

from tools_service.base.printable import printable

logger = logging.getLogger(__name__)

ANSWER_TOO_LONG = "answer too long"
GRACE_S = 2.0  # for a server to end after its standard input closes, as MCP asks of it

_CHUNK = 2**16
_LAST_WORDS_S = 0.5  # for the rest of standard error, once the server has ended
_ENDS = 512  # bytes kept of each end of a line that is dropped
_ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d+)')
_ID_LAST = re.compile(rb'"id"\s*:\s*(\d+)\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')
_WATCHDOG = 'read -r _; kill -s KILL -- "-$1"'

Incoming = SessionMessage | Exception
Streams = tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]


class ServerProcess:
    """One server: `connect` runs it during a block and gives the streams that the SDK's Client wants."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        max_message_bytes: int,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called when the server closes its standard output."""
        self._command = command
        self._environment = environment
        self._max_message_bytes = max_message_bytes
        self._on_end = on_end
        self._group: int | None = None
        self.exit_code: int | None = None
        """The exit code of a server that ended by itself; negative is a signal."""
        self.last_words = ""
        """The last line of standard error."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Streams]:
        """Run the server during the block. OSError if it cannot be started."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        self._group = process.pid
        watchdog = _start_watchdog(process.pid)
        to_client, incoming = anyio.create_memory_object_stream[Incoming](0)
        outgoing, from_client = anyio.create_memory_object_stream[SessionMessage](0)
        async with to_client, incoming, outgoing, from_client, anyio.create_task_group() as tasks:
            errors_read = anyio.Event()
            tasks.start_soon(self._read_errors, process, errors_read)
            tasks.start_soon(self._read, process, to_client)
            tasks.start_soon(self._write, process, from_client)
            try:
                yield incoming, outgoing
            finally:
                incoming.close()  # what the server still writes is read and dropped
                try:
                    with anyio.CancelScope(shield=True):
                        await self._stop_in_any_case(process)
                        with anyio.move_on_after(_LAST_WORDS_S):
                            await errors_read.wait()
                finally:  # asyncio's own cancellation passes a shield
                    self.kill()
                    _end_watchdog(watchdog)
                    tasks.cancel_scope.cancel()

    def kill(self) -> None:
        """End the server and what it started at once."""
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)

    async def _stop_in_any_case(self, process: asyncio.subprocess.Process) -> None:
        """Stop the server; at once if this task is cancelled meanwhile, which passes a shield of anyio's."""
        stopping = asyncio.create_task(self._stop(process))
        cancelled: asyncio.CancelledError | None = None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as error:
                self.kill()
                cancelled = error
        if cancelled:
            raise cancelled

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        """Close the server's standard input, and kill its group after the grace period."""
        assert process.stdin
        process.stdin.close()
        await _wait(process)
        self.exit_code = process.returncode
        self.kill()
        self._group = None
        await _wait(process)
        process._transport.close()  # type: ignore[attr-defined]  # what survives may keep its pipes open

    async def _read(
        self, process: asyncio.subprocess.Process, to_client: MemoryObjectSendStream[Incoming]
    ) -> None:
        """Pass messages on until the server closes its standard output; then the session ends."""
        try:
            await self._pass_on(process, to_client)
        finally:
            to_client.close()
            self._on_end()

    async def _pass_on(
        self, process: asyncio.subprocess.Process, to_client: MemoryObjectSendStream[Incoming]
    ) -> None:
        assert process.stdout
        complained = False
        async for line, is_whole in _lines(process.stdout, self._max_message_bytes):
            message = _parse(line) if is_whole else _refuse(line)
            if message is not None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await to_client.send(SessionMessage(message))
            elif not is_whole:
                logger.warning("%s: a message of more than %d bytes", self._name, self._max_message_bytes)
                return
            elif line.strip() and not complained:
                complained = True
                shown = printable(line[:80].decode("utf-8", "replace"))
                logger.warning("%s: standard output has a line that is no message: %s", self._name, shown)

    async def _write(
        self, process: asyncio.subprocess.Process, from_client: MemoryObjectReceiveStream[SessionMessage]
    ) -> None:
        assert process.stdin
        async with from_client:
            async for sent in from_client:
                line = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
                with suppress(ConnectionError):  # the reader notices the end
                    process.stdin.write(line.encode() + b"\n")
                    await process.stdin.drain()

    async def _read_errors(self, process: asyncio.subprocess.Process, errors_read: anyio.Event) -> None:
        assert process.stderr
        async for line, _ in _lines(process.stderr, _ENDS):
            if text := line.decode("utf-8", "replace").strip():
                self.last_words = printable(text, 300)
                logger.debug("%s: %s", self._name, self.last_words)
        errors_read.set()

    @property
    def _name(self) -> str:
        return printable(" ".join(self._command), 120)


async def _wait(process: asyncio.subprocess.Process) -> None:
    """Wait for the end, at most the grace period."""
    with anyio.move_on_after(GRACE_S):
        while process.returncode is None:  # wait() would also wait for processes that inherited the pipes
            await anyio.sleep(0.01)


async def _lines(stream: asyncio.StreamReader, limit: int) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield each line and whether it is whole; of one with more than `limit` bytes only its two ends."""
    line, is_whole = bytearray(), True
    while chunk := await stream.read(_CHUNK):
        first, *others = chunk.split(b"\n")
        line += first
        for part in others:
            is_whole = is_whole and len(line) <= limit
            yield bytes(line), is_whole
            line, is_whole = bytearray(part), True
        if len(line) > limit:
            is_whole = False
            del line[_ENDS:-_ENDS]
    if line:
        yield bytes(line), is_whole


def _parse(line: bytes) -> JSONRPCMessage | None:
    try:
        return jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        return None


def _refuse(ends: bytes) -> JSONRPCError | None:
    """The error that takes the place of an answer that is too long; None if the call is not known."""
    found = _ID_FIRST.match(ends) or _ID_LAST.search(ends[-_ENDS:])
    if not found:
        return None
    return JSONRPCError(
        jsonrpc="2.0", id=int(found[1]), error=ErrorData(code=INTERNAL_ERROR, message=ANSWER_TOO_LONG)
    )


def _start_watchdog(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "sh", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end_watchdog(watchdog: subprocess.Popen[bytes]) -> None:
    watchdog.kill()  # before its standard input closes: the group's number may be another's by now
    watchdog.wait()
    assert watchdog.stdin
    watchdog.stdin.close()
