"""Step 7: texts continued by a model that calls tools on the way (paper section 4.2, "Decoding").

In: prompts, the day each is asked on, a model, a client of the tools. Out: one Generation per prompt, in
order. The rules of decoding are in decoding.py; docs/evaluation.md states them all, docs/decisions/0006 the
choices among them. Nothing here scores answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import ApiTokenMask, FailedCall, MadeCall
from pipeline.inference.decoding import Continuation, Decoder, InferenceError, Rules, Stop
from pipeline.syntax.calls import linearise
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import TOOL_NAMES, ToolName


@dataclass(frozen=True, slots=True)
class Generation:
    """What a prompt was continued with: `text` without its calls, of `tokens` tokens, and the calls."""

    text: str
    calls: tuple[MadeCall, ...]
    failed: tuple[FailedCall, ...]
    stop: Stop
    tokens: int

    @property
    def annotated(self) -> str:
        """The text with its calls and their results where they were made."""
        cuts = [0, *(call.position for call in self.calls), len(self.text)]
        pieces = [self.text[start:end] for start, end in pairwise(cuts)]
        calls = [linearise(call.tool, call.input, call.result) for call in self.calls]
        return "".join(piece + call for piece, call in zip(pieces, [*calls, ""], strict=True))


class Generator:
    """Continues prompts with one model and one set of tools.

    `k`: a call is begun where <API> is among the k most likely tokens; 1 is plain greedy decoding, 0 never
    calls. `disabled` sets the probability of <API> to 0; so do k = 0 and switching every tool off. A tool in
    `tools_off` cannot be named: the most likely token that leads elsewhere is taken. After `max_calls` calls,
    or one that came to nothing, the probability of <API> is 0 for that prompt. A call that has no arrow after
    `max_call_tokens` tokens comes to nothing.
    """

    def __init__(
        self,
        model: LanguageModel,
        tools: ToolClient,
        *,
        k: int = 10,
        disabled: bool = False,
        tools_off: Collection[ToolName] = frozenset(),
        max_calls: int = 1,
        max_call_tokens: int = 60,
    ) -> None:
        self.model = model
        self.tools = tools
        self.k = k
        self.tools_off = frozenset(tools_off)
        self.max_calls = 0 if disabled or k < 1 or self.tools_off >= set(TOOL_NAMES) else max_calls
        self.max_call_tokens = max_call_tokens
        self.beginnings = ApiTokenMask(model.call_tokens, model.device)

    def generate(
        self,
        prompts: Sequence[str],
        dates: Sequence[str | None] | None = None,
        *,
        max_new_tokens: int = 64,
        stop_at_newline: bool = False,
    ) -> list[Generation]:
        """Continues each prompt by at most `max_new_tokens` tokens, those of calls and results not counted.

        `dates` are the prompts' own days (YYYY-MM-DD), for the calendar. Decoding also stops at the token
        that ends a text, where the model's context is full and, with `stop_at_newline`, at the end of the
        first line that is not blank. Spaces at the end of a prompt are dropped: the first token generated
        brings its own. Raises InferenceError for an empty prompt and for one that leaves no room in the
        context.
        """
        days = [None] * len(prompts) if dates is None else dates
        states = [Continuation(self.encode(prompt), day) for prompt, day in zip(prompts, days, strict=True)]
        rules = Rules(
            eos=_ends(self.model),
            k=self.k,
            tools_off=self.tools_off,
            max_calls=self.max_calls,
            max_call_tokens=self.max_call_tokens,
            max_new_tokens=max_new_tokens,
            stop_at_newline=stop_at_newline,
        )
        for batch in self.model.batch_by_length(
            [len(state.tokens) for state in states], forwards=max_new_tokens
        ):
            Decoder(self.model, self.tools, rules, self.beginnings, [states[index] for index in batch]).run()
        return [self._generation(state, stop_at_newline) for state in states]

    def encode(self, prompt: str) -> list[int]:
        """BOS where the tokenizer puts one, then the prompt as a text after a space, as in every step."""
        tokens = list(self.model.call_tokens.bos)
        if stripped := prompt.rstrip(" "):
            tokens += tokenize_continuations(self.model.tokenizer, [" " + stripped])[0].ids.tolist()
        if not tokens:
            raise InferenceError("a prompt is empty, and the tokenizer has no BOS to start from")
        if len(tokens) >= self.model.max_positions:
            raise InferenceError(
                f"the prompt {prompt[:60]!r} has {len(tokens)} tokens; with at least one more it must fit "
                f"the context of {self.model.max_positions}"
            )
        return tokens

    def _generation(self, state: Continuation, stop_at_newline: bool) -> Generation:
        assert state.stop is not None
        [text] = decode_continuations(self.model.tokenizer, [state.text])
        if stop_at_newline:
            blank = len(text) - len(text.lstrip())
            text = text[:blank] + text[blank:].partition("\n")[0]
        calls = tuple(state.calls)
        return Generation(text, calls, tuple(state.failed), state.stop, len(state.text))


def _ends(model: LanguageModel) -> frozenset[int]:
    """The ids after which a text is over: the generation configuration's and the tokenizer's."""
    ends = model.model.generation_config.eos_token_id
    ids = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*ids, model.tokenizer.eos_token_id) if token is not None)
