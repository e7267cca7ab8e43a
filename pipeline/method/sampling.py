"""Step 2, sample: where calls might help, and which (paper section 2, "Sampling API Calls").

In: requests, each a text and a tool; the tools' prompts and settings (tau_s, k, m). Out: for
each request its distinct candidate calls, and why the other draws are no calls
(drawn_calls.py). Requests of all tools are sampled together by continuous batching; results
do not depend on which requests run together. Calls are neither executed nor scored here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray

from pipeline.base.config import MethodConfig
from pipeline.engine.errors import NonFiniteError, Origin
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.random_streams import stream_keys
from pipeline.engine.sampler import Sampler
from pipeline.method.drawn_calls import (
    DrawReader,
    RequestDraws,
    SampledText,
    SamplingRequest,
)
from pipeline.syntax.grammar import call_head
from tools_service.contract.declarations import stream_number
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.prompts import PromptTemplate

# Forwards of a new batch: its contexts, then <API> behind each chosen position.
_PREFILL_FORWARDS = 2
# New contexts take at most this share of a forward's tokens, so that running draws can go
# on beside them.
_PREFILL_SHARE = 0.5


def sample_calls(
    model: LanguageModel,
    requests: Sequence[SamplingRequest],
    prompts: Mapping[str, PromptTemplate | None],
    method: MethodConfig,
    *,
    trace: bool = False,
    done: Callable[[float], None] = lambda share: None,
) -> list[SampledText]:
    """The candidate calls of every request, in the order of the requests.

    A tool without a prompt (None) gets the text alone. A text without tokens, or too long to
    fit beside the prompt, comes back failed. `done` is told the share of the requests that
    have begun to draw. Raises
    NonFiniteError if the model's probabilities are not finite, and ModelError if a single
    context does not fit the memory.
    """
    scheduler = _Scheduler(model, requests, prompts, method)
    while pending := scheduler.pending():
        failure = None
        try:
            scheduler.run(pending, done)
        except torch.OutOfMemoryError as error:
            failure = str(error)
        scheduler.collect_finished()
        # Not in the handler: the exception keeps the tensors of the failed forward alive.
        if failure is not None:
            sizes = [
                scheduler.cache_slots(index) for index in scheduler.pending()
            ]
            model.shrink(min(sizes, default=1), failure)
    reader = DrawReader(model, prompts, method, scheduler.states)
    results = [reader.sampled_text(state) for state in scheduler.states]
    if trace:
        results = [
            replace(result, trace=reader.trace(state))
            for result, state in zip(results, scheduler.states, strict=True)
        ]
    return results


def select_positions(
    p_api: ndarray,
    usable: ndarray,
    tau_s: float,
    k: int,
) -> ndarray:
    """I: at most k usable positions with p(<API>) > tau_s, the likeliest, ascending.

    Of equal probabilities the earlier position wins.
    """
    above = np.flatnonzero(usable & (p_api > tau_s))
    by_probability = np.argsort(-p_api[above], kind="stable")
    return np.sort(above[by_probability[:k]])


@dataclass(slots=True)
class _RequestState(RequestDraws):
    """How far a request is."""

    started: bool = False
    # The sampler's numbers of its draws, position by position.
    numbers: range = range(0)


class _Scheduler:
    """Continuous batching: requests are admitted to the running draws as others end."""

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[SamplingRequest],
        prompts: Mapping[str, PromptTemplate | None],
        method: MethodConfig,
    ) -> None:
        self.model = model
        self.requests = requests
        self.prompts = prompts
        self.method = method
        self.sampler = Sampler(model)
        encoded = model.encode([request.text.text for request in requests])
        self.states = [
            _RequestState(request, text)
            for request, text in zip(requests, encoded, strict=True)
        ]
        for request, state in zip(requests, self.states, strict=True):
            tokens = len(state.encoded.ids)
            state.failed = self._too_long(request, tokens)
            if (
                tokens == 1
                and prompts[request.tool] is None
                and self.model.prompt(None).is_empty
            ):
                # Nothing predicts the only token: there is no position, and nothing runs.
                state.p_api, state.tokens = np.zeros(1), []

    def _too_long(self, request: SamplingRequest, tokens: int) -> str | None:
        """Why a text of so many tokens cannot be sampled; None if it can."""
        max_call_tokens = self.method.of(request.tool).max_call_tokens
        room = self.model.max_text_tokens(
            self.prompts[request.tool],
            max_call_tokens,
        )
        if 0 < tokens <= room:
            return None
        beside = f"the prompt of {request.tool}"
        if self.prompts[request.tool] is None:
            beside = f"a call of {request.tool}"
        return (
            f"context: the text has {tokens} tokens, beside {beside} "
            f"there is room for {room}"
        )

    def pending(self) -> list[int]:
        """Indices of the requests that are still to be drawn for."""
        return [
            index
            for index, state in enumerate(self.states)
            if state.failed is None and state.tokens is None
        ]

    def run(
        self,
        pending: Sequence[int],
        done: Callable[[float], None],
    ) -> None:
        """Draw for these requests, from their contexts to the last token."""
        begun = len(self.states) - len(pending)
        for batch in self._batches(pending):
            self._make_room(len(batch) * self.cache_slots(batch[0]))
            self._start(batch)
            begun += len(batch)
            done(begun / len(self.states))
        # Room for a whole batch is there only once every draw has ended.
        self._make_room(self.model.max_batch_tokens)

    def collect_finished(self) -> None:
        """Store the draws of finished requests.

        The other requests are sampled again, with the same random numbers.
        """
        running = self.sampler.running()
        for index in self.pending():
            state = self.states[index]
            if state.started and not running.intersection(state.numbers):
                state.tokens = self.sampler.tokens(state.numbers)
                m = self.method.of(self.requests[index].tool).m
                names = [self.sampler.names[n] for n in state.numbers[::m]]
                state.names = [name for name in names if name is not None]
            state.started = False
        self.sampler = Sampler(self.model)

    def _batches(self, pending: Sequence[int]) -> list[list[int]]:
        """Requests of one tool and like length each, the longest contexts first."""
        by_tool: dict[str, list[int]] = {}
        for index in pending:
            by_tool.setdefault(self.requests[index].tool, []).append(index)
        batches = []
        for tool, indices in by_tool.items():
            prompt_length = self.model.prompt(self.prompts[tool]).length
            lengths = [self._context_length(i) - prompt_length for i in indices]
            places = self.model.batch_by_length(
                lengths,
                0 if self.model.shares_prompts else prompt_length,
                _PREFILL_FORWARDS,
                _PREFILL_SHARE,
            )
            batches += [[indices[place] for place in batch] for batch in places]
        return sorted(
            batches, key=lambda batch: -self._context_length(batch[0])
        )

    def cache_slots(self, index: int) -> int:
        """Cache slots that the context of a request takes."""
        prompt = self.model.prompt(self.prompts[self.requests[index].tool])
        shared = prompt.length if self.model.shares_prompts else 0
        return self._context_length(index) - shared

    def _context_length(self, index: int) -> int:
        """Tokens of a request's context: the prompt, the text, the suffix, the text."""
        prompt = self.model.prompt(self.prompts[self.requests[index].tool])
        return prompt.context_length(len(self.states[index].encoded.ids))

    def _make_room(self, slots: int) -> None:
        """Draw until a batch that needs so many cache slots may be admitted."""
        limit = self.model.max_batch_tokens
        while used := self.sampler.cached_slots:
            if used + slots <= limit:
                break
            self.sampler.step()

    def _start(self, batch: Sequence[int]) -> None:
        """Prefill the contexts of a batch, choose positions, and start the draws."""
        tool = self.requests[batch[0]].tool
        states = [self.states[index] for index in batch]
        contexts = PrefilledBatch(
            self.model,
            self.model.prompt(self.prompts[tool]),
            [state.encoded.ids for state in states],
            [state.usage for state in states],
        )
        for index, p_api in zip(
            batch,
            contexts.api_probabilities(),
            strict=True,
        ):
            self._choose_positions(index, p_api)
        self._start_draws(contexts, batch)
        for state in states:
            state.started = True

    def _choose_positions(self, index: int, p_api: ndarray) -> None:
        request, state = self.requests[index], self.states[index]
        bad = np.flatnonzero(~np.isfinite(p_api))
        if len(bad):
            text_id = request.text.text_id
            raise NonFiniteError("p(<API>)", text_id, request.tool, int(bad[0]))
        settings = self.method.of(request.tool)
        usable = state.encoded.starts >= 0
        state.p_api = p_api
        tau_s, k = settings.tau_s, settings.k
        state.positions = select_positions(p_api, usable, tau_s, k)
        # Without a BOS the model gives no probability to a text's first token: a call
        # there has no loss and could never be kept.
        if 0 in state.positions and not self.model.call_tokens.bos:
            state.position_0_unscorable = True
            usable[0] = False
            state.positions = select_positions(p_api, usable, tau_s, k)

    def _start_draws(
        self,
        contexts: PrefilledBatch,
        batch: Sequence[int],
    ) -> None:
        """Start m draws at each chosen position, if there are any."""
        tool = self.requests[batch[0]].tool
        settings = self.method.of(tool)
        counts = [len(self.states[index].positions) for index in batch]
        if not sum(counts):
            return
        keys, origins = self._keys(batch, tool, settings)
        opening = (
            self.model.opening(f"{tool}(") if settings.given_name else None
        )
        numbers = self.sampler.add(
            contexts,
            text=np.repeat(np.arange(len(batch)), counts),
            position=np.concatenate([self.states[i].positions for i in batch]),
            keys=keys,
            automaton=self.model.automaton(
                call_head(tool, settings.takes_input),
                ends_at_arrow=self.prompts[tool] is None,
            ),
            max_tokens=settings.max_call_tokens,
            origins=origins,
            opening=opening,
        )
        ends = np.cumsum(counts) * settings.m
        for index, count, end in zip(batch, counts, ends.tolist(), strict=True):
            self.states[index].numbers = numbers[end - count * settings.m : end]

    def _keys(
        self,
        batch: Sequence[int],
        tool: str,
        settings: ToolMethod,
    ) -> tuple[ndarray, list[Origin]]:
        """For each chosen position the keys of its draws [positions, m], and its origin."""
        origins: list[Origin] = []
        for index in batch:
            text_id = self.requests[index].text.text_id
            positions = self.states[index].positions.tolist()
            origins += [(text_id, tool, position) for position in positions]
        text_ids = np.array([text_id for text_id, _, _ in origins])
        position = np.array([position for _, _, position in origins])
        keys = stream_keys(
            self.method.seed,
            text_ids[:, None],
            stream_number(tool),
            position[:, None],
            settings.m,
        )
        return keys, origins
