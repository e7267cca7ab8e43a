"""One prompt while it is decoded: which token comes next, in its text and in a call (section 4.2).

Decoding is greedy, except that a call begins wherever <API> is among the `k` most likely tokens.
After the arrow the tool is called, and its result and </API> are inserted. A call that fails is
rolled back. Arrows and ends of calls are recognised in the text, whatever tokens spell them. In: the
choice for the next token, the answers of tools. Out: the tokens to run next, events, and at the end
a Generation. decoder.py runs many requests in one batch; this module runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse

import torch
from torch import Tensor

from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    BeginEvent,
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    Generation,
    PromptError,
    ResultEvent,
    StopReason,
    TextEvent,
)
from pipeline.inference.params import DecodingParams
from pipeline.inference.text_stream import TextStream
from pipeline.inference.token_choice import RandomStream, TokenChoice, sample
from pipeline.inference.vocabulary import Vocabulary
from pipeline.syntax.partial_call import (
    ARROW_HEAD,
    PendingCall,
    names_disabled_tool,
    parse_partial_call,
    tool_of,
)
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.syntax.calls import API, END, CallError, Malformed, linearise

Emit = Callable[[Event], None]


@dataclass(slots=True)
class PartialCall:
    """A call that the model is writing.

    `start` and `logits` [V] are the row's length and logits before it, `tokens` its tokens from
    <API> on. `pending` is set when the model has written the arrow. `outer` is the call whose input
    it begins in, if any; no further call begins in an input with `chaining_disabled`. `rank` is the
    worst rank of the tokens of <API>, from 1.
    """

    start: int
    logits: Tensor
    outer: PartialCall | None = None
    tokens: list[int] = field(default_factory=list)
    pending: PendingCall | None = None
    chaining_disabled: bool = False
    rank: int = 0


class Request:
    """The state of one prompt, and the rules that choose its next token.

    `tokens` are all tokens of its row; a batch has run the first `cached` of them, and runs the others
    next. `text_tokens` are the generated ones outside of calls.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        params: DecodingParams,
        date: str | None = None,
        emit: Emit | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self.params = params
        self.date = date
        self._emit = emit or (lambda event: None)
        self.tokens = list(prompt)
        self.cached = 0
        self._prompt_tokens = len(self.tokens)
        self.text_tokens: list[int] = []
        self.calls: list[CompletedCall] = []
        self.failed: list[FailedCall] = []
        self.partial_call: PartialCall | None = None
        self.calls_disabled = params.calls_disabled
        self._failed_at = -1  # tokens of the row before the last failed call
        self.cancelled = False
        self.generation: Generation | None = None
        self._stop_reason: StopReason | None = None
        self._sampled = 0
        self._end = -1  # where the text ends if a stop string was found
        self._sampling = (params, RandomStream(params.seed, prompt)) if params.temperature > 0 else None
        # Only a text that somebody reads on the way, or that a string may end, is decoded on the way.
        self._text = TextStream(vocabulary.decode, params.stop) if emit or params.stop else None

    @property
    def sampling(self) -> tuple[DecodingParams, RandomStream] | None:
        """How the next token is sampled; None if it is the most likely one."""
        return self._sampling

    @property
    def pending(self) -> PendingCall | None:
        """The call that waits for its tool."""
        return None if self.partial_call is None else self.partial_call.pending

    @property
    def tool_input(self) -> ToolInput:
        """What the tool of the pending call is asked."""
        assert self.pending is not None
        return ToolInput(self.pending.input, self.date)

    @property
    def api_disabled(self) -> bool:
        """Whether the probability of <API> is 0 for the next token of the text."""
        return self.partial_call is None and (self.calls_disabled or self._may_repeat_failed)

    @property
    def _may_repeat_failed(self) -> bool:
        """Whether the text could write the <API> of a failed call with a space and a bracket."""
        is_next = len(self.tokens) == self._failed_at + 1
        return is_next and self._vocabulary.strings[self.tokens[-1]].endswith(API[0])

    def next_api_token(self) -> int:
        """The token of <API> that may come next."""
        api, call = self._vocabulary.api, self.partial_call
        return api[len(call.tokens)] if call and len(call.tokens) < len(api) else api[0]

    def disable_api(self, logits: Tensor) -> None:
        """Set the probability of <API> after the row's last token to 0, in `logits` [V]."""
        last_token = torch.tensor(self.tokens[-1], device=logits.device)
        logits.masked_fill_(self._vocabulary.api_mask.after(last_token), -torch.inf)

    def advance(self, choice: TokenChoice, logits: Tensor) -> None:
        """Append the next token, given the choice for the row and its `logits` [V]."""
        self._sampled += 1
        call = self.partial_call
        if call is None:
            if self._may_begin(choice):
                self._begin(choice, logits, None)
            else:
                self._append_text(choice.token)
        elif len(call.tokens) < len(self._vocabulary.api):
            if choice.api_rank < self.params.k:
                self._append_api(call, choice.api_rank)
            else:  # <API> itself is not completed
                self._roll_back(None)
        elif self._may_chain(call, choice):
            self._begin(choice, logits, call)
        else:
            self._append_to_call(call, choice.token, logits)

    def answer(self, answer: ToolResult) -> None:
        """Insert the result of the pending call, or roll the call back if it has none."""
        assert self.pending is not None
        if answer.result is None:
            self._roll_back(answer.reason)
        else:
            self._insert_result(self.pending, answer.result)

    def finish(self, reason: StopReason | None = None, refused: PromptError | None = None) -> None:
        """End the request; of one that is `refused`, nothing of the text remains."""
        if self.generation is not None:
            return
        stop_reason = reason or self._stop_reason
        assert stop_reason is not None
        text = "" if refused else self._final_text()
        # A call may stand inside of a stop string, which is no longer in the text.
        calls = [replace(call, position=min(call.position, len(text))) for call in self.calls]
        failed = [replace(call, position=min(call.position, len(text))) for call in self.failed]
        if self._text is not None and (rest := self._text.hand_out_until(len(text), text)):
            self._emit(TextEvent(rest))
        self.generation = Generation(
            text=text,
            calls=tuple(calls),
            failed=tuple(failed),
            stop_reason=stop_reason,
            tokens=len(self.text_tokens),
            refused=refused,
            prompt_tokens=self._prompt_tokens,
            sampled_tokens=self._sampled,
        )
        self._emit(EndEvent(self.generation))

    def last_text(self) -> str:
        """The end of the row's text, for messages."""
        return self._vocabulary.decode(self.tokens)[-80:]

    @property
    def has_ended(self) -> bool:
        """Whether no token comes any more."""
        return self._stop_reason is not None or self.generation is not None

    def _final_text(self) -> str:
        text = self._vocabulary.decode(self.text_tokens)
        if self._end >= 0:
            text = text[: self._end]
        if self.params.stop_at_newline:
            blank = len(text) - len(text.lstrip())
            text = text[:blank] + text[blank:].partition("\n")[0]
        return text

    def _may_begin(self, choice: TokenChoice) -> bool:
        has_room = len(self.tokens) + len(self._vocabulary.api) < self._vocabulary.max_positions
        disabled = self.calls_disabled or self._may_repeat_failed
        return not disabled and choice.api_rank < self.params.k and has_room

    def _may_chain(self, call: PartialCall, choice: TokenChoice) -> bool:
        """Whether a call may begin in the input of `call`."""
        if not self.params.chained_calls or call.chaining_disabled or not self._may_begin(choice):
            return False
        open_calls = len(list(_with_outer(call)))
        tool = tool_of(self._call_text(call), self.params.tools)
        takes_input = tool is not None and self.params.tools[tool]
        return takes_input and len(self.calls) + open_calls < self.params.max_calls

    def _begin(self, choice: TokenChoice, logits: Tensor, outer: PartialCall | None) -> None:
        call = PartialCall(len(self.tokens), logits.clone(), outer)
        self.partial_call = call
        self._append_api(call, choice.api_rank)

    def _append_api(self, call: PartialCall, rank: int) -> None:
        """Append the next token of <API>, which had this rank from 0."""
        self._append(call, self._vocabulary.api[len(call.tokens)])
        call.rank = max(call.rank, rank + 1)
        if self._text is not None and len(call.tokens) == len(self._vocabulary.api):
            self._emit(BeginEvent(self._position(), call.rank))

    def _append(self, call: PartialCall, token: int) -> None:
        call.tokens.append(token)
        self.tokens.append(token)

    def _append_text(self, token: int) -> None:
        """Append a token outside of calls, unless the text ends with it."""
        if token in self._vocabulary.eos_token_ids:
            self._stop_reason = "eos"
            return
        self.text_tokens.append(token)
        self.tokens.append(token)
        newline = self.params.stop_at_newline and "\n" in self._vocabulary.strings[token]
        if self._stops_in_text(token):
            self._stop_reason = "stop"
        elif newline and "\n" in self._vocabulary.decode(self.text_tokens).lstrip():
            self._stop_reason = "newline"
        elif len(self.text_tokens) >= self.params.max_new_tokens:
            self._stop_reason = "length"
        elif self._context_full():
            self._stop_reason = "context"
        elif self._text is not None and (text := self._text.hand_out()):
            self._emit(TextEvent(text))

    def _stops_in_text(self, token: int) -> bool:
        """Whether a stop string is complete with `token`."""
        end = self._text.push(token) if self._text is not None else None
        if end is not None:
            self._end = end
        return end is not None

    def _append_to_call(self, call: PartialCall, chosen: int, logits: Tensor) -> None:
        """Append a token to a call. Roll the call back if it cannot be completed."""
        token = self._skip_disabled_tools(call, chosen, logits)
        if token in self._vocabulary.eos_token_ids:
            self._roll_back("ended")
            return
        self._append(call, token)
        if token in self._vocabulary.special_token_ids:
            self._roll_back("special_token")
        else:
            self._check(call)

    def _check(self, call: PartialCall) -> None:
        """See whether a call that has grown is complete up to its arrow, or cannot be completed."""
        written = self._call_text(call)
        parsed = parse_partial_call(written, self.params.tools, self.params.tools_off)
        too_long = len(call.tokens) - len(self._vocabulary.api) >= self._max_call_tokens(written)
        if isinstance(parsed, Malformed):
            self._roll_back(parsed.reason)
        elif parsed is not None:
            call.pending = parsed
            self._emit(CallEvent(parsed.tool, parsed.input))
        elif too_long or self._context_full():
            self._roll_back("too_long")

    def _max_call_tokens(self, written: str) -> int:
        """The limit of the tool that `written` calls; the largest while its name is not complete."""
        limits, tools = self.params.max_call_tokens, self.params.tools
        tool = tool_of(written, tools)
        return max(map(limits.of, tools)) if tool is None else limits.of(tool)

    def _skip_disabled_tools(self, call: PartialCall, chosen: int, logits: Tensor) -> int:
        """The most likely token that names no disabled tool; `chosen` if it is none, or all are."""

        def names_disabled(token: int) -> bool:
            written = self._call_text(call, token)
            return names_disabled_tool(written, self.params.tools, self.params.tools_off)

        if not self.params.tools_off or not names_disabled(chosen):
            return chosen
        by_probability = logits.argsort(descending=True).tolist()
        return next(filterfalse(names_disabled, by_probability), chosen)

    def _roll_back(self, reason: str | None) -> None:
        """Remove the partial call; go on with the token that would have come without it.

        With a `reason` the call failed. Without one <API> itself was not completed.
        """
        call = self.partial_call
        assert call is not None
        self.partial_call = call.outer
        self._replace(call.start, [])
        if reason is not None:
            failed = FailedCall(self._call_text(call), reason, self._position())
            self.failed.append(failed)
            self._emit(FailureEvent(failed))
            self.calls_disabled |= len(self.failed) >= self.params.max_failed_calls
            self.disable_api(call.logits)
            self._failed_at = call.start
        token = int(call.logits.argmax()) if self._sampling is None else sample(call.logits, *self._sampling)
        if call.outer is None:
            self._append_text(token)
        else:
            call.outer.chaining_disabled = True
            self._append_to_call(call.outer, token, call.logits)

    def _replace(self, start: int, tokens: list[int]) -> None:
        """Put `tokens` in the place of those from `start` on."""
        self.tokens[start:] = tokens
        self.cached = min(self.cached, start)

    def _insert_result(self, pending: PendingCall, result: str) -> None:
        """The result and </API>, behind what the row keeps of the call."""
        call = self.partial_call
        assert call is not None
        try:
            whole_call = linearise(pending.tool, pending.input, result)
        except CallError:
            self._roll_back("unsafe_result")
            return
        start = call.start
        if call.outer is not None:  # in an input, the result alone takes the place of the call
            inserted = self._vocabulary.tokenize(result)
        elif self._call_text(call).endswith(ARROW_HEAD):
            start = len(self.tokens)
            inserted = self._vocabulary.tokenize(f" {result}{END}")
        else:  # the arrow's token contains more than the arrow: the whole call is written again
            inserted = self._vocabulary.tokenize(whole_call)
        if start + len(inserted) >= self._vocabulary.max_positions:
            self._roll_back("no_room")
            return
        self._replace(start, inserted)
        self.partial_call = call.outer
        completed = CompletedCall(pending.tool, pending.input, result, self._position())
        self.calls.append(completed)
        self.calls_disabled |= len(self.calls) >= self.params.max_calls
        self._emit(ResultEvent(completed))
        if call.outer is not None:
            call.outer.tokens += inserted
            self._check(call.outer)

    def _position(self) -> int:
        """Characters of the text so far."""
        return len(self._vocabulary.decode(self.text_tokens))

    def _context_full(self) -> bool:
        """Whether the context has no room for a token behind the next one."""
        return len(self.tokens) >= self._vocabulary.max_positions

    def _call_text(self, call: PartialCall, *more_tokens: int) -> str:
        """The text of the call after <API>."""
        return self._vocabulary.decode([*call.tokens, *more_tokens])[len(API) :]


def _with_outer(call: PartialCall | None) -> list[PartialCall]:
    """The call and those that it begins in."""
    calls = []
    while call is not None:
        calls.append(call)
        call = call.outer
    return calls
