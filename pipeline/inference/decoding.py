"""The decoding loop: chooses the next token, in a text and in a call (paper section 4.2).

Decoding is greedy, except that a call begins wherever <API> is among the `k` most likely tokens.
After the arrow the tool is called, and its result and </API> are inserted. A call that fails is
rolled back, and its prompt gets no further call. Arrows and ends of calls are recognised in the
text, whatever tokens spell them. In: prompts as token ids, the engine, a tool client. Out: finished
`DecodingState`s, which generator.py turns into texts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import filterfalse

import torch
from torch import Tensor

from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import (
    ARROW_HEAD,
    ApiTokenMask,
    CompletedCall,
    FailedCall,
    PendingCall,
    names_disabled_tool,
    parse_partial_call,
    tool_of,
)
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.inference.generation import InferenceError, StopReason
from pipeline.inference.params import DecodingParams
from pipeline.syntax.tokenizer import decode_continuations, special_ids, tokenize_continuations
from tools_service.contract.tool import ToolInput
from tools_service.syntax.calls import API, END, CallError, Malformed, linearise
from tools_service.tools.client import ToolClient


@dataclass(slots=True)
class PartialCall:
    """A call that the model is writing.

    `start` and `logits` [V] are the row's length and logits before it, `tokens` its tokens from
    <API> on. `pending` is set when the model has written the arrow.
    """

    start: int
    logits: Tensor
    tokens: list[int] = field(default_factory=list)
    pending: PendingCall | None = None


@dataclass(slots=True)
class DecodingState:
    """One prompt while it is decoded.

    `tokens` are all tokens of its row, `text_tokens` the generated ones outside of calls,
    `forced_tokens` the rest of a result that is still to be fed.
    """

    tokens: list[int]
    date: str | None
    calls_disabled: bool
    text_tokens: list[int] = field(default_factory=list)
    forced_tokens: deque[int] = field(default_factory=deque)
    partial_call: PartialCall | None = None
    calls: list[CompletedCall] = field(default_factory=list)
    failed: list[FailedCall] = field(default_factory=list)
    stop_reason: StopReason | None = None


@dataclass
class Decoder:
    """Decodes some prompts together; row r of `batch` belongs to `states[r]`."""

    model: LanguageModel
    tools: ToolClient
    params: DecodingParams
    api_mask: ApiTokenMask
    states: list[DecodingState]

    def __post_init__(self) -> None:
        self.api = self.model.call_tokens.api
        # The ids that end a text: those of the generation configuration and of the tokenizer.
        configured = self.model.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        self.eos_token_ids = {*ids, self.model.tokenizer.eos_token_id} - {None}
        self.special_token_ids = set(special_ids(self.model.tokenizer))
        self.batch = DecodeBatch(self.model, [state.tokens for state in self.states])

    def run(self) -> None:
        """Decodes until every state has its `stop_reason`. Finished rows leave the batch."""
        while self.states:
            tokens = self._next_tokens()
            active = [row for row, state in enumerate(self.states) if state.stop_reason is None]
            if 0 < len(active) < len(self.states):
                self.batch.keep(active)
            self.states = [self.states[row] for row in active]
            tokens = [tokens[row] for row in active]
            for state, token in zip(self.states, tokens, strict=True):
                state.tokens.append(token)
            if active:
                self.batch.step(tokens)

    def _next_tokens(self) -> list[int]:
        """The next token of each row. Each tool gets all pending calls of a step in one list."""
        tokens = [self._next_token(row, *ranks) for row, ranks in enumerate(self._rank_tokens())]
        pending_calls: dict[str, list[tuple[int, PendingCall]]] = {}
        for row, state in enumerate(self.states):
            if state.partial_call is not None and state.partial_call.pending is not None:
                call = state.partial_call.pending
                pending_calls.setdefault(call.tool, []).append((row, call))
        for tool, calls in pending_calls.items():
            inputs = [ToolInput(call.input, self.states[row].date) for row, call in calls]
            for (row, call), answer in zip(calls, self.tools.call(tool, inputs), strict=True):
                if answer.result is None:
                    tokens[row] = self._roll_back(row, answer.reason)
                else:
                    tokens[row] = self._insert_result(row, call, answer.result)
        return tokens

    def _rank_tokens(self) -> list[tuple[int, int]]:
        """For each row, the most likely token and the rank (from 0) of the next token of <API>.

        Where calls are disabled, <API> gets probability 0 first. Ids without a token are ignored.
        Raises InferenceError for logits that are not finite.
        """
        vocabulary = len(self.model.call_tokens.token_strings)
        logits = self.batch.logits = self.batch.logits[:, :vocabulary]
        api_tokens = []
        for row, state in enumerate(self.states):
            api_token = self._next_api_token(state.partial_call)
            api_tokens.append(self.api[0] if api_token is None else api_token)
            if state.calls_disabled and state.partial_call is None:
                self._disable_api(logits[row], state)
        api_ids = torch.tensor(api_tokens, device=logits.device)[:, None]  # [B, 1]
        api_logits = logits.gather(1, api_ids)
        # Of equally likely tokens the one with the lower id comes first, as in max().
        lower_ids = torch.arange(vocabulary, device=logits.device) < api_ids
        before_api = (logits > api_logits) | ((logits == api_logits) & lower_ids)
        best, greedy = logits.max(1)
        # One transfer from the device for everything.
        rows = torch.stack([greedy, before_api.sum(1), torch.isfinite(best).long()], 1).tolist()
        for state, (_, _, finite) in zip(self.states, rows, strict=True):
            if not finite:
                raise InferenceError(f"non-finite logits after {self._decode(state.tokens)[-80:]!r}")
        return [(token, rank) for token, rank, _ in rows]

    def _next_api_token(self, call: PartialCall | None) -> int | None:
        """The token of <API> that comes next; None if <API> is complete."""
        written = 0 if call is None else len(call.tokens)
        return self.api[written] if written < len(self.api) else None

    def _disable_api(self, logits: Tensor, state: DecodingState) -> None:
        """Sets the probability of <API> after the row's last token to 0, in `logits` [V]."""
        last_token = torch.tensor(state.tokens[-1], device=logits.device)
        logits.masked_fill_(self.api_mask.after(last_token), -torch.inf)

    def _next_token(self, row: int, greedy: int, api_rank: int) -> int:
        """The next token of a row, before any tool is called."""
        state = self.states[row]
        if state.forced_tokens:
            return state.forced_tokens.popleft()
        if state.partial_call is None:
            has_room = self.batch.length(row) + len(self.api) < self.model.max_positions
            if state.calls_disabled or api_rank >= self.params.k or not has_room:
                return self._append_text(row, greedy)
            state.partial_call = PartialCall(self.batch.length(row), self.batch.logits[row].clone())
        api_token = self._next_api_token(state.partial_call)
        if api_token is None:
            return self._append_to_call(row, state.partial_call, greedy)
        if api_rank >= self.params.k:
            return self._roll_back(row)
        state.partial_call.tokens.append(api_token)
        return api_token

    def _append_text(self, row: int, token: int) -> int:
        """Appends a token outside of calls, and sets `stop_reason` if it is the last one."""
        state = self.states[row]
        if token in self.eos_token_ids:
            state.stop_reason = "eos"
            return token
        state.text_tokens.append(token)
        newline = self.params.stop_at_newline and "\n" in self.model.call_tokens.token_strings[token]
        if newline and "\n" in self._decode(state.text_tokens).lstrip():
            state.stop_reason = "newline"
        elif len(state.text_tokens) >= self.params.max_new_tokens:
            state.stop_reason = "length"
        elif self._context_full(row):
            state.stop_reason = "context"
        return token

    def _append_to_call(self, row: int, call: PartialCall, greedy: int) -> int:
        """Appends a token to a call. Rolls the call back if it cannot be completed."""
        token = self._skip_disabled_tools(row, call, greedy)
        if token in self.eos_token_ids:
            return self._roll_back(row, "ended")
        call.tokens.append(token)
        if token in self.special_token_ids:
            return self._roll_back(row, "special_token")
        written = self._call_text(call)
        parsed = parse_partial_call(written, self.params.tools, self.params.tools_off)
        if isinstance(parsed, Malformed):
            return self._roll_back(row, parsed.reason)
        call.pending = parsed
        too_long = len(call.tokens) - len(self.api) >= self._max_call_tokens(written)
        if parsed is None and (too_long or self._context_full(row)):
            return self._roll_back(row, "too_long")
        return token

    def _max_call_tokens(self, written: str) -> int:
        """The limit of the tool that `written` calls; the largest while its name is not complete."""
        limits, tools = self.params.max_call_tokens, self.params.tools
        tool = tool_of(written, tools)
        return max(map(limits.of, tools)) if tool is None else limits.of(tool)

    def _skip_disabled_tools(self, row: int, call: PartialCall, greedy: int) -> int:
        """The most likely token that names no disabled tool; `greedy` if there is none."""

        def names_disabled(token: int) -> bool:
            written = self._call_text(call, token)
            return names_disabled_tool(written, self.params.tools, self.params.tools_off)

        if not names_disabled(greedy):
            return greedy
        by_probability = self.batch.logits[row].argsort(descending=True).tolist()
        return next(filterfalse(names_disabled, by_probability), greedy)

    def _roll_back(self, row: int, reason: str | None = None) -> int:
        """Removes the partial call; returns the token that greedy decoding takes instead.

        With a `reason` the call failed, and the prompt gets no further call. Without one <API>
        itself was not completed, and calls stay possible.
        """
        state = self.states[row]
        call, state.partial_call = state.partial_call, None
        assert call is not None
        self._truncate(row, call.start)
        if reason is not None:
            state.failed.append(FailedCall(self._call_text(call), reason))
            state.calls_disabled = True
            self._disable_api(call.logits, state)
        return self._append_text(row, int(call.logits.argmax()))

    def _insert_result(self, row: int, pending: PendingCall, result: str) -> int:
        """Queues the result and </API>; returns the row's next token."""
        state = self.states[row]
        call = state.partial_call
        assert call is not None
        try:
            whole_call = linearise(pending.tool, pending.input, result)
        except CallError:
            return self._roll_back(row, "unsafe_result")
        # If the arrow's token contains more than the arrow, the whole call is written again.
        ends_at_arrow = self._call_text(call).endswith(ARROW_HEAD)
        insertion = f" {result}{END}" if ends_at_arrow else whole_call
        [tokenized] = tokenize_continuations(self.model.tokenizer, [insertion])
        tokens, start = tokenized.ids.tolist(), call.start
        if ends_at_arrow:
            tokens, start = [call.tokens[-1], *tokens], self.batch.length(row)
        if start + len(tokens) >= self.model.max_positions:
            return self._roll_back(row, "no_room")
        self._truncate(row, start)
        state.partial_call, state.forced_tokens = None, deque(tokens)
        position = len(self._decode(state.text_tokens))
        state.calls.append(CompletedCall(pending.tool, pending.input, result, position))
        state.calls_disabled = len(state.calls) >= self.params.max_calls
        return state.forced_tokens.popleft()

    def _truncate(self, row: int, length: int) -> None:
        """Keeps the first `length` tokens of a row."""
        self.batch.rollback(row, self.batch.length(row) - length)
        del self.states[row].tokens[length:]

    def _context_full(self, row: int) -> bool:
        """Whether the context has room for no more than one token."""
        return self.batch.length(row) + 1 >= self.model.max_positions

    def _call_text(self, call: PartialCall, *more_tokens: int) -> str:
        """The text of the call after <API>."""
        return self._decode([*call.tokens, *more_tokens])[len(API) :]

    def _decode(self, tokens: list[int]) -> str:
        [text] = decode_continuations(self.model.tokenizer, [tokens])
        return text
