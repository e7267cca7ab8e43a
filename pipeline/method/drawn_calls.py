"""Draws read as calls: the last part of sampling (paper section 2, "Sampling API Calls").

In: what was drawn for each request. Out: its distinct candidate calls with their counts, why the
other draws are no calls, and the work. Requests, their results and their traces are here.
sampling.py chooses the positions and lets the model draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from pipeline.base.config import MethodConfig
from pipeline.base.cost import PromptLayout
from pipeline.base.records import (
    POSITION_NOT_SCORABLE,
    Candidate,
    PhaseWork,
    Text,
)
from pipeline.engine.given_name import GivenName
from pipeline.engine.model import LanguageModel
from pipeline.engine.usage import Usage
from pipeline.method.work import sampling_work
from pipeline.syntax.tokenizer import (
    TokenizedText,
    decode_continuations,
    special_ids,
)
from tools_service.syntax.calls import Malformed, parse_call, without_result
from tools_service.syntax.prompts import PromptTemplate


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """A text, and a tool whose calls are to be sampled for it."""

    text: Text
    tool: str


@dataclass(frozen=True, slots=True, eq=False)
class SamplingTrace:
    """What sampling saw of one text: p(<API>) everywhere, and every draw.

    A draw is what the model wrote after <API>, up to the token that ended it or made it no
    call, and its input or why it has none; they come position by position.
    """

    p_api: ndarray  # [n] at every token of the text
    starts: ndarray  # [n] the character where the token starts; -1: no position
    positions: ndarray  # [|I|] token indices, ascending
    draws: list[tuple[str, str | Malformed]]  # [|I| * m]


@dataclass(frozen=True, slots=True)
class SampledText:
    """One text under one tool.

    `positions` is the size of I, `draws` m times that. `discarded` counts draws by the
    reason why they are no call, and POSITION_NOT_SCORABLE. `failed` says why the text could
    not be sampled at all. `work` has the phases positions and decode. `trace` is there if it
    was asked for and the text was sampled.
    """

    text: Text
    tool: str
    positions: int = 0
    draws: int = 0
    candidates: tuple[Candidate, ...] = ()
    discarded: dict[str, int] = field(default_factory=dict)
    work: tuple[PhaseWork, ...] = ()
    failed: str | None = None
    trace: SamplingTrace | None = None


def _nothing() -> ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class RequestDraws:
    """What was drawn for a request. Positions are token indices."""

    request: SamplingRequest
    encoded: TokenizedText
    failed: str | None = None
    # p(<API>) at every position [n], and I; empty until they are known.
    p_api: ndarray = field(default_factory=_nothing)
    positions: ndarray = field(default_factory=_nothing)
    position_0_unscorable: bool = False
    # The tokens of its draws, position by position, once all have ended.
    tokens: list[tuple[int, ...]] | None = None
    # The tool's name at each of the positions, if the draws are given it.
    names: list[GivenName] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)


class DrawReader:
    """Reads the draws of `requests`, all of which have ended."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Mapping[str, PromptTemplate | None],
        method: MethodConfig,
        requests: Sequence[RequestDraws],
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.method = method
        self.requests = requests
        # What the draws of each tool are.
        self._inputs: dict[str, dict[tuple[int, ...], str | Malformed]] = {}

    def sampled_text(self, state: RequestDraws) -> SampledText:
        """What came of a request."""
        request = state.request
        if state.failed is not None:
            return SampledText(request.text, request.tool, failed=state.failed)
        tokens_of_draws = state.tokens or []
        settings = self.method.of(request.tool)
        m = settings.m
        position_of_draw = np.repeat(state.positions, m).tolist()
        draws: dict[int, list[tuple[int, ...]]] = {
            i: [] for i in state.positions.tolist()
        }
        for position, tokens in zip(
            position_of_draw,
            tokens_of_draws,
            strict=True,
        ):
            draws[position].append(tokens)
        names = dict(zip(draws, state.names, strict=False))
        input_of = self._input_of_draw(request.tool)
        inputs = [input_of[ids] for ids in tokens_of_draws]
        draws_of_call: Counter[tuple[int, str]] = Counter()
        discarded: Counter[str] = Counter()
        if state.position_0_unscorable:
            discarded[POSITION_NOT_SCORABLE] = 1
        for position, call_input in zip(position_of_draw, inputs, strict=True):
            if isinstance(call_input, Malformed):
                discarded[call_input.reason] += 1
            else:
                draws_of_call[position, call_input] += 1
        candidates = [
            Candidate(
                tool=request.tool,
                position=int(state.encoded.starts[position]),
                token_index=position,
                p_api=float(state.p_api[position]),
                input=call_input,
                draws=count,
                p_name=names[position].probability if names else None,
            )
            for (position, call_input), count in draws_of_call.items()
        ]
        prompt = self.model.prompt(self.prompts[request.tool])
        layout = PromptLayout(
            prompt.length,
            len(state.encoded.ids),
            len(prompt.suffix),
            len(self.model.call_tokens.api),
            prompt.has_prompt,
        )
        return SampledText(
            request.text,
            request.tool,
            positions=len(state.positions),
            draws=len(tokens_of_draws),
            candidates=tuple(candidates),
            discarded=dict(discarded),
            work=sampling_work(
                request.tool,
                layout,
                draws,
                state.usage,
                {position: name.beginnings for position, name in names.items()},
            ),
        )

    def trace(self, state: RequestDraws) -> SamplingTrace | None:
        """What sampling saw of a request; None if it failed."""
        if state.failed is not None:
            return None
        tokens = state.tokens or []
        written = decode_continuations(self.model.tokenizer, tokens)
        input_of = self._input_of_draw(state.request.tool)
        inputs = [input_of[ids] for ids in tokens]
        return SamplingTrace(
            state.p_api,
            state.encoded.starts,
            state.positions,
            list(zip(written, inputs, strict=True)),
        )

    def _input_of_draw(
        self, tool: str
    ) -> dict[tuple[int, ...], str | Malformed]:
        """The input of the call of each distinct draw, or why it is no call.

        All texts' draws parse together, when the first of them is asked for.
        A draw without tokens was to be given a name that is too unlikely. Without a prompt
        the model writes results, too: the call is what stands before ``->``.
        """
        if tool in self._inputs:
            return self._inputs[tool]
        tokenizer = self.model.tokenizer
        takes_input = self.method.of(tool).takes_input
        distinct = list(
            {
                ids: None
                for state in self.requests
                if state.request.tool == tool
                for ids in state.tokens or ()
            }
        )
        special = set(special_ids(tokenizer))
        texts = decode_continuations(tokenizer, distinct)
        parsed: dict[tuple[int, ...], str | Malformed] = {}
        if self.prompts[tool] is None:
            texts = [without_result(text) for text in texts]
        for ids, text in zip(distinct, texts, strict=True):
            if not ids:
                parsed[ids] = Malformed("name_too_unlikely")
            elif ids[-1] in special:
                parsed[ids] = Malformed("special_token")
            else:
                parsed[ids] = parse_call(text, tool, takes_input)
        self._inputs[tool] = parsed
        return parsed
