"""The rules of step 7: which token comes next, in a text and in a call (paper section 4.2, "Decoding").

Greedy, with one change: a call is begun at a step where <API> is among the `k` most likely tokens. When the
arrow has been written, decoding stops, the tool is called, its result and </API> are inserted, and decoding
goes on behind them. A call that comes to nothing is taken back as if it had not been begun, and the prompt
goes on without calls. The arrow and the end of a call are found in the text, whatever tokens spell them.

In: prompts as token ids, the rules' settings, the engine, a client of the tools. Out: every `Continuation`
finished. inference.py makes them from texts and texts from them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import (
    ARROW_HEAD,
    ApiTokenMask,
    FailedCall,
    MadeCall,
    PendingCall,
    names_switched_off,
    read_call,
)
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.syntax.calls import API, END, CallError, Malformed, linearise
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tools_service.base.errors import ToolformerError
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import ToolInput, ToolName

Stop = Literal["eos", "newline", "length", "context"]


class InferenceError(ToolformerError):
    """A prompt that cannot be decoded; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decoding goes by; `eos` are the ids that end a text. See `Generator` for the rest."""

    eos: frozenset[int]
    k: int
    tools_off: frozenset[ToolName]
    max_calls: int
    max_call_tokens: int
    max_new_tokens: int
    stop_at_newline: bool


@dataclass(slots=True)
class PartialCall:
    """A call being written: the row's length and logits [V] before it, its tokens from <API> on.

    `asked` is set when the arrow has come.
    """

    start: int
    logits: Tensor
    tokens: list[int] = field(default_factory=list)
    asked: PendingCall | None = None


@dataclass(slots=True)
class Continuation:
    """One prompt on its way. `tokens` is all its row holds, `text` what was generated outside of calls."""

    tokens: list[int]
    date: str | None
    text: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    attempt: PartialCall | None = None
    calls: list[MadeCall] = field(default_factory=list)
    failed: list[FailedCall] = field(default_factory=list)
    calls_disabled: bool = False
    stop: Stop | None = None


class Decoder:
    """The loop over some prompts at once; row r of `rows` belongs to `states[r]`."""

    def __init__(
        self,
        model: LanguageModel,
        tools: ToolClient,
        rules: Rules,
        beginnings: ApiTokenMask,
        prompts: list[Continuation],
    ) -> None:
        self.model = model
        self.tools = tools
        self.rules = rules
        self.api = model.call_tokens.api
        self.beginnings = beginnings
        self.states = prompts
        for state in prompts:
            state.calls_disabled = rules.max_calls == 0
        self.rows = DecodeBatch(model, [state.tokens for state in prompts])

    def run(self) -> None:
        """Decodes until every prompt has its `stop`. Rows that are done leave."""
        while self.states:
            tokens = self._choose()
            live = [row for row, state in enumerate(self.states) if state.stop is None]
            if 0 < len(live) < len(self.states):
                self.rows.keep(live)
            self.states = [self.states[row] for row in live]
            for row, state in zip(live, self.states, strict=True):
                state.tokens.append(tokens[row])
            if live:
                self.rows.step([tokens[row] for row in live])

    def _choose(self) -> list[int]:
        """Each row's next token. Tools are asked once a step, for all rows whose arrow has just come."""
        greedy, rank = self._look()
        tokens = [self._next(row, greedy[row], rank[row]) for row in range(len(self.states))]
        asked: dict[ToolName, list[tuple[int, PendingCall]]] = {}
        for row, state in enumerate(self.states):
            if state.attempt is not None and state.attempt.asked is not None:
                asked.setdefault(state.attempt.asked.tool, []).append((row, state.attempt.asked))
        for tool, calls in asked.items():
            inputs = [ToolInput(call.input, self.states[row].date) for row, call in calls]
            for (row, call), answer in zip(calls, self.tools.call(tool, inputs), strict=True):
                if answer.result is None:
                    tokens[row] = self._take_back(row, answer.reason)
                else:
                    tokens[row] = self._insert(row, call, answer.result)
        return tokens

    def _look(self) -> tuple[list[int], list[int]]:
        """For each row the most likely token, and how many come before the one that <API> needs next.

        A barred row's <API> gets probability 0 first. Ids that the tokenizer does not have do not exist.
        """
        logits = self.rows.logits = self.rows.logits[:, : len(self.model.call_tokens.token_strings)]
        wanted = []
        for row, state in enumerate(self.states):
            spelled = len(state.attempt.tokens) if state.attempt is not None else 0
            wanted.append(self.api[spelled if spelled < len(self.api) else 0])
            if state.calls_disabled and state.attempt is None:
                self._bar(logits[row], state)
        ids = torch.tensor(wanted, device=logits.device)[:, None]
        level = logits.gather(1, ids)
        earlier = torch.arange(logits.shape[1], device=logits.device) < ids
        ahead = (logits > level) | ((logits == level) & earlier)
        best, greedy = logits.max(1)
        found = torch.stack([greedy, ahead.sum(1), torch.isfinite(best).long()], 1).tolist()
        for state, (_, _, finite) in zip(self.states, found, strict=True):
            if not finite:
                written = self._text(state.tokens)
                raise InferenceError(f"the model gave non-finite logits after {written[-80:]!r}")
        return [token for token, _, _ in found], [rank for _, rank, _ in found]

    def _bar(self, logits: Tensor, state: Continuation) -> None:
        """Sets the probability of <API> behind the row's last token to 0 in `logits` [V]."""
        last = torch.tensor(state.tokens[-1], device=logits.device)
        logits.masked_fill_(self.beginnings.after(last), -torch.inf)

    def _next(self, row: int, greedy: int, rank: int) -> int:
        """One row's next token, before any tool is asked."""
        state = self.states[row]
        if state.forced:
            return state.forced.popleft()
        if state.attempt is None:
            room = self.rows.length(row) + len(self.api) < self.model.max_positions
            if state.calls_disabled or rank >= self.rules.k or not room:
                return self._write(row, greedy)
            state.attempt = PartialCall(self.rows.length(row), self.rows.logits[row].clone())
        spelled = len(state.attempt.tokens)
        if spelled >= len(self.api):
            return self._write_call(row, state.attempt, greedy)
        if rank >= self.rules.k:
            return self._take_back(row)
        state.attempt.tokens.append(self.api[spelled])
        return self.api[spelled]

    def _write(self, row: int, token: int) -> int:
        """A token outside of calls; sets `stop` where it is the last."""
        state = self.states[row]
        if token in self.rules.eos:
            state.stop = "eos"
            return token
        state.text.append(token)
        newline = self.rules.stop_at_newline and "\n" in self.model.call_tokens.token_strings[token]
        if newline and "\n" in self._text(state.text).lstrip():
            state.stop = "newline"
        elif len(state.text) >= self.rules.max_new_tokens:
            state.stop = "length"
        elif self._full(row):
            state.stop = "context"
        return token

    def _write_call(self, row: int, attempt: PartialCall, greedy: int) -> int:
        """A token inside a call. What can be no call any more is taken back."""
        token = self._with_tool_on(row, attempt, greedy)
        if token in self.rules.eos:
            return self._take_back(row, "ended")
        attempt.tokens.append(token)
        call = read_call(self._written(attempt), self.rules.tools_off)
        if isinstance(call, Malformed):
            return self._take_back(row, call.reason)
        attempt.asked = call
        too_long = len(attempt.tokens) - len(self.api) >= self.rules.max_call_tokens
        if call is None and (too_long or self._full(row)):
            return self._take_back(row, "too_long")
        return token

    def _with_tool_on(self, row: int, attempt: PartialCall, greedy: int) -> int:
        """`greedy` or, where that spells a tool that is switched off, the most likely token that does not."""
        off = self.rules.tools_off
        if not off or not names_switched_off(self._written(attempt, greedy), off):
            return greedy
        order: list[int] = self.rows.logits[row].argsort(descending=True).tolist()
        return next(
            (token for token in order if not names_switched_off(self._written(attempt, token), off)), greedy
        )

    def _take_back(self, row: int, reason: str | None = None) -> int:
        """Forgets the call being written; the token that greedy decoding takes in its place.

        With a reason the prompt gets no further call. Without one <API> itself was not spelled to its end,
        and only this step goes on without it.
        """
        state = self.states[row]
        attempt, state.attempt = state.attempt, None
        assert attempt is not None
        self._cut(row, attempt.start)
        if reason is not None:
            state.failed.append(FailedCall(self._written(attempt), reason))
            state.calls_disabled = True
            self._bar(attempt.logits, state)
        return self._write(row, int(attempt.logits.argmax()))

    def _insert(self, row: int, call: PendingCall, result: str) -> int:
        """Queues the result and </API>; the row's next token.

        Where the arrow's token brought more than the arrow, the whole call is written anew as it should be.
        """
        state = self.states[row]
        attempt = state.attempt
        assert attempt is not None
        try:
            whole = linearise(call.tool, call.input, result)
        except CallError:
            return self._take_back(row, "unsafe_result")
        in_place = self._written(attempt).endswith(ARROW_HEAD)
        rest = tokenize_continuations(self.model.tokenizer, [f" {result}{END}" if in_place else whole])[
            0
        ].ids.tolist()
        tokens = [attempt.tokens[-1], *rest] if in_place else rest
        start = self.rows.length(row) if in_place else attempt.start
        if start + len(tokens) >= self.model.max_positions:
            return self._take_back(row, "no_room")
        self._cut(row, start)
        state.attempt, state.forced = None, deque(tokens)
        position = len(self._text(state.text))
        state.calls.append(MadeCall(call.tool, call.input, result, position))
        state.calls_disabled = len(state.calls) >= self.rules.max_calls
        return state.forced.popleft()

    def _cut(self, row: int, length: int) -> None:
        """Cuts a row back to its first `length` tokens."""
        self.rows.rollback(row, self.rows.length(row) - length)
        del self.states[row].tokens[length:]

    def _full(self, row: int) -> bool:
        """Whether the next token is the last that the context has room for."""
        return self.rows.length(row) + 1 >= self.model.max_positions

    def _written(self, attempt: PartialCall, *more: int) -> str:
        """The text after <API>."""
        return self._text([*attempt.tokens, *more])[len(API) :]

    def _text(self, tokens: list[int]) -> str:
        [text] = decode_continuations(self.model.tokenizer, [tokens])
        return text
