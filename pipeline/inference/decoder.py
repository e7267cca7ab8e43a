"""Decodes many requests in one batch, which they join and leave as they go (section 4.2).

A request leaves the batch when its text ends or its call waits for a tool, and joins again with the
result: only the tokens of the result are run. So a slow tool holds nobody up. Calls of one tool that
become ready at the same step are one list. In: requests, from any thread. Out: requests with their
generation. Which token comes next is in request.py.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from pipeline.engine.model import LanguageModel
from pipeline.engine.row_cache import SavedRow
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.inference.generation import PromptError
from pipeline.inference.request import Request
from pipeline.inference.token_choice import choose_tokens
from tools_service.contract.tool import TOOL_FAILED, ToolResult
from tools_service.tools.client import ToolClient, submit

logger = logging.getLogger(__name__)

# Steps between two forwards for joining rows: one forward for several rows costs little more than for one.
_JOIN_EVERY = 4


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a tool to the pending calls of some rows."""

    rows: Sequence[tuple[Request, SavedRow]]
    future: Future[list[ToolResult]]

    def results(self) -> list[ToolResult]:
        """One per row. A client that raises, or answers with another number, fails these calls alone."""
        try:
            results = self.future.result()
        except Exception:
            logger.exception("a tool client failed")
            results = []
        if len(results) != len(self.rows):
            return [ToolResult(reason=TOOL_FAILED) for _ in self.rows]
        return results


class Decoder:
    """Decodes requests together, at most `max_rows` at a time.

    `inbox` takes requests and answers from any thread, and a request again that has been cancelled; the
    other methods are for one thread.
    """

    def __init__(self, model: LanguageModel, tools: ToolClient, max_rows: int) -> None:
        self.inbox: queue.SimpleQueue[Request | Answers | None] = queue.SimpleQueue()
        self._model = model
        self._tools = tools
        self._max_rows = max_rows
        self._batch = DecodeBatch(model)
        self._rows: list[Request] = []  # of the batch, in its order
        self._joining: deque[tuple[Request, SavedRow]] = deque()
        self._waiting: set[Request] = set()
        self._steps_since_join = _JOIN_EVERY

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a tool."""
        return len(self._waiting)

    @property
    def pending(self) -> int:
        """Requests that wait for a place in the batch."""
        return len(self._joining) + self.inbox.qsize()

    @property
    def unfinished(self) -> list[Request]:
        """All requests that have been received."""
        return [*self._rows, *(request for request, _ in self._joining), *self._waiting]

    def step(self) -> bool:
        """Decode one token of each row. If only tools or callers can go on, wait for them first.

        False if None has come in, which ends decoding.
        """
        must_wait = not self._rows and not self._joining
        while must_wait or not self.inbox.empty():
            message = self.inbox.get()
            if message is None:
                return False
            self._receive(message)
            must_wait = False
        self._drop_cancelled()
        self._join()
        if self._rows:
            self._advance()
            self._run()
        if not self._rows:
            self._batch = DecodeBatch(self._model)  # frees the keys and values
        self._steps_since_join += 1
        return True

    def _receive(self, message: Request | Answers) -> None:
        if isinstance(message, Request):
            if message.cancelled:
                message.finish("cancelled")
            else:
                self._joining.append((message, SavedRow()))
            return
        for (request, saved), answer in zip(message.rows, message.results(), strict=True):
            self._waiting.discard(request)
            if request.generation is not None:  # cancelled meanwhile
                continue
            request.answer(answer)
            if request.has_ended:
                request.finish()
            elif request.pending is not None:
                self._ask([(request, saved)])
            else:
                # First in, first out, but those that have begun go before those that have not.
                self._joining.appendleft((request, saved.truncated(min(saved.length, request.cached))))

    def _drop_cancelled(self) -> None:
        for request in self.unfinished:
            if request.cancelled:
                request.finish("cancelled")
        self._waiting = {request for request in self._waiting if request.generation is None}
        self._joining = deque(entry for entry in self._joining if entry[0].generation is None)
        self._remove([row for row, request in enumerate(self._rows) if request.generation is not None])

    def _join(self) -> None:
        """Let as many join as there is room for, not at every step."""
        if self._rows and self._steps_since_join < _JOIN_EVERY:
            return
        joining: list[tuple[Request, SavedRow]] = []
        while self._joining and self._has_room([*joining, self._joining[0]]):
            joining.append(self._joining.popleft())
        if not joining:
            return
        self._steps_since_join = 0
        lengths = [len(request.tokens) - saved.length for request, saved in joining]
        for indices in self._model.batch_by_length(lengths):
            self._join_together([joining[index] for index in indices])

    def _has_room(self, joining: Sequence[tuple[Request, SavedRow]]) -> bool:
        """Whether these rows may run beside the others. One always may."""
        rows = [*self._rows, *(request for request, _ in joining)]
        # A row may still grow to its prompt, its text and some calls; the cache is as wide as the longest.
        longest = max(len(request.tokens) + request.params.max_new_tokens for request in rows)
        longest = min(longest, self._model.max_positions)
        fits = len(rows) * longest <= self._model.max_batch_tokens
        return len(rows) == 1 or (len(rows) <= self._max_rows and fits)

    def _join_together(self, joining: Sequence[tuple[Request, SavedRow]]) -> None:
        requests = [request for request, _ in joining]
        tokens = [request.tokens[saved.length :] for request, saved in joining]
        try:
            self._batch.join([saved for _, saved in joining], tokens)
        except torch.OutOfMemoryError as error:
            if len(joining) == 1 and self._rows:  # there may be room when others have left
                self._max_rows = len(self._rows)
                self._joining.appendleft(joining[0])
                return
            if len(joining) == 1:
                self._refuse_for_memory(requests[0], error)
                return
            middle = len(joining) // 2
            self._join_together(joining[:middle])
            self._join_together(joining[middle:])
            return
        self._rows += requests
        for request in requests:
            request.cached = len(request.tokens)

    def _advance(self) -> None:
        """Choose the next token of every row; rows that end or wait leave."""
        vocabulary = len(self._model.call_tokens.token_strings)
        logits = self._batch.logits[:, :vocabulary]  # ids without a token are ignored
        for row, request in enumerate(self._rows):
            if request.api_disabled:
                request.disable_api(logits[row])
        choices = choose_tokens(
            logits,
            [request.next_api_token() for request in self._rows],
            [request.sampling for request in self._rows],
        )
        leaving: list[int] = []
        pending: dict[str, list[tuple[Request, SavedRow]]] = {}
        for row, (request, choice) in enumerate(zip(self._rows, choices, strict=True)):
            if not choice.is_finite:
                message = f"the model's logits are not finite after {request.last_text()!r}"
                request.finish("refused", PromptError("not_finite", message))
            else:
                request.advance(choice, logits[row])
            if request.has_ended:
                request.finish()
                leaving.append(row)
                continue
            self._batch.truncate(row, request.cached)
            if request.pending is not None:
                saved = self._batch.save(row)
                pending.setdefault(request.pending.tool, []).append((request, saved))
                leaving.append(row)
        self._remove(leaving)
        for calls in pending.values():
            self._ask(calls)

    def _run(self) -> None:
        """Run the chosen token of each row."""
        if not self._rows:
            return
        try:
            self._batch.step([request.tokens[request.cached] for request in self._rows])
        except torch.OutOfMemoryError as error:
            self._make_room(error)
            return
        for request in self._rows:
            request.cached += 1

    def _make_room(self, error: torch.OutOfMemoryError) -> None:
        """After a forward that ran out of memory: half of the rows leave, and begin anew later."""
        if len(self._rows) == 1:
            self._refuse_for_memory(self._rows[0], error)
            self._remove([0])
            return
        self._max_rows = max(1, len(self._rows) // 2)
        for request in self._rows:
            request.cached = 0
            self._joining.appendleft((request, SavedRow()))
        self._rows = []
        self._batch = DecodeBatch(self._model)

    def _refuse_for_memory(self, request: Request, error: torch.OutOfMemoryError) -> None:
        message = f"out of memory with the prompt alone, {len(request.tokens)} tokens: {error}"
        request.finish("refused", PromptError("out_of_memory", message))

    def _remove(self, rows: Sequence[int]) -> None:
        """Take rows [ascending] out of the batch. The last row takes the place of each."""
        for row in reversed(rows):
            self._batch.remove(row)
            last = self._rows.pop()
            if row < len(self._rows):
                self._rows[row] = last

    def _ask(self, calls: Sequence[tuple[Request, SavedRow]]) -> None:
        """Ask the tool of pending calls; its answers come into the inbox."""
        assert calls[0][0].pending is not None
        tool = calls[0][0].pending.tool
        self._waiting.update(request for request, _ in calls)
        future = submit(self._tools, tool, [request.tool_input for request, _ in calls])
        future.add_done_callback(lambda done: self.inbox.put(Answers(calls, done)))
