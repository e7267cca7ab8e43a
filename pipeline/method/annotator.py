"""Steps 1-4 on one batch of texts: select, sample, execute, filter (paper section 2).

In: texts, a language model, a client of the tools, the method's settings. Out: one `Annotation` per
text, in order, with every scored call and the funnel of each tool. A text on which model or tools
fail is recorded as failed and does not take its batch along; scores that are not finite stop
everything. While one batch waits for tools, another may use the model. No Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Funnel, Status, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.model import LanguageModel
from pipeline.method.drawn_calls import SampledText, SamplingRequest
from pipeline.method.execution import ExecutedCall, execute
from pipeline.method.filtering import ScoredText, score_calls
from pipeline.method.sampling import sample_calls
from pipeline.method.selection import Selection, select
from pipeline.method.utilization import UtilizationClock
from pipeline.syntax.tokenizer import require_separate_heads
from tools_service.base.errors import ToolformerError
from tools_service.contract.tool import TRANSIENT
from tools_service.syntax.prompts import PromptTemplate, load_prompt
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIN_TEXTS_TO_BLAME = 8
"""If all texts of a batch fail, and there are at least so many, the texts are not to blame."""


# The shares of a batch's work that are done after sampling and after the calls, roughly.
_SAMPLED, _EXECUTED = 0.6, 0.65


class BatchFailedError(ToolformerError):
    """Every text of a batch failed."""


@dataclass(slots=True)
class _TextState:
    """One text on its way through the steps."""

    text: Text
    selected: dict[str, Selection] = field(default_factory=dict)
    sampled: dict[str, SampledText] = field(default_factory=dict)
    executed: list[ExecutedCall] = field(default_factory=list)

    @property
    def date(self) -> str | None:
        """The day the calendar answers with."""
        dates = (selection.date for selection in self.selected.values())
        return next((date for date in dates if date), None)


class Annotator:
    """One model and the tools. Batches may overlap; the model works on one at a time."""

    def __init__(
        self,
        model: LanguageModel,
        tools: ToolClient,
        method: MethodConfig,
    ) -> None:
        """Raises PromptError if a tool has no usable prompt."""
        self._model = model
        self._tools = tools
        self._method = method
        self._prompts = {tool: prompt_of(tool, method) for tool in method.tools}
        require_separate_heads(model.tokenizer, method.tools)
        self._tau_floor = {tool: method.of(tool).tau_f for tool in method.tools}
        # One thread: the model serves one batch at a time, and the allocator keeps freed
        # memory by thread.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.utilization = UtilizationClock()

    def annotate(self, texts: Sequence[Text]) -> list[Annotation]:
        """One annotation per text, in order. Raises as `aannotate` does."""
        return asyncio.run(self.aannotate(texts))

    async def aannotate(
        self,
        texts: Sequence[Text],
        done: Callable[[float], None] | None = None,
    ) -> list[Annotation]:
        """The same without blocking the event loop.

        `done` is told the share of the batch's work that is done, from any thread.
        Raises NonFiniteError, and BatchFailedError when all of at least
        MIN_TEXTS_TO_BLAME texts fail.
        """
        usable = [text for text in texts if text.skipped is None]
        with self.utilization.phase("other"):
            annotations = await self._isolated(usable, done)
        failed = [a for a in annotations if a.status == "failed"]
        if len(failed) == len(annotations) >= MIN_TEXTS_TO_BLAME:
            raise BatchFailedError(
                f"all {len(failed)} texts of a batch failed, so the texts are hardly to "
                f"blame; text {failed[0].text.text_id}: {failed[0].reason}"
            )
        remaining = iter(annotations)
        return [
            next(remaining)
            if text.skipped is None
            else Annotation(text, "skipped", text.skipped)
            for text in texts
        ]

    async def _isolated(
        self,
        texts: Sequence[Text],
        done: Callable[[float], None] | None = None,
    ) -> list[Annotation]:
        """Annotate; a batch that fails is halved until one text stands alone with its error."""
        if not texts:
            return []
        try:
            return await self._steps(texts, done or _untold)
        except NonFiniteError:
            raise
        except Exception as error:  # isolation: the failure becomes a row
            if len(texts) == 1:
                return [_failed(texts[0], error)]
            message = "a batch of %d texts failed; each half is tried alone"
            logger.warning(message, len(texts), exc_info=True)
        half = len(texts) // 2
        first = await self._isolated(texts[:half])
        second = await self._isolated(texts[half:])
        return [*first, *second]

    async def _steps(
        self,
        texts: Sequence[Text],
        done: Callable[[float], None],
    ) -> list[Annotation]:
        states = [_TextState(text) for text in texts]
        # Selection needs no model: it runs beside another batch's use of the model.
        await asyncio.to_thread(self._select, states)
        sampling = _part(done, 0.0, _SAMPLED)
        await self._with_model(lambda: self._sample(states, sampling))
        await self._execute(states)
        done(_EXECUTED)
        _log_lost_calls(states)
        scoring = _part(done, _EXECUTED, 1.0)
        scored = await self._with_model(lambda: self._score(states, scoring))
        return [
            self._annotation(state, scored_text)
            for state, scored_text in zip(states, scored, strict=True)
        ]

    async def _with_model(self, work: Callable[[], T]) -> T:
        """Run work that needs the model, in the order in which it was asked for."""

        def timed() -> T:
            with self.utilization.phase("model"):
                return work()

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._model_thread, timed)

    def _select(self, states: Sequence[_TextState]) -> None:
        """Step 1."""
        for state in states:
            state.selected = {
                tool: select(tool, state.text, self._method)
                for tool in self._prompts
            }

    def _sample(
        self,
        states: Sequence[_TextState],
        done: Callable[[float], None],
    ) -> None:
        """Step 2."""
        chosen = [
            (state, tool)
            for tool in self._prompts
            for state in states
            if state.selected[tool].chosen
        ]
        requests = [SamplingRequest(state.text, tool) for state, tool in chosen]
        sampled = sample_calls(
            self._model, requests, self._prompts, self._method, done=done
        )
        for (state, tool), sampled_text in zip(chosen, sampled, strict=True):
            state.sampled[tool] = sampled_text

    async def _execute(self, states: Sequence[_TextState]) -> None:
        """Step 3."""
        candidates = [
            [
                call
                for sampled in state.sampled.values()
                for call in sampled.candidates
            ]
            for state in states
        ]
        dates = [state.date for state in states]
        with self.utilization.phase("tools"):
            executed = await execute(candidates, dates, self._tools)
        for state, calls in zip(states, executed, strict=True):
            state.executed = calls

    def _score(
        self,
        states: Sequence[_TextState],
        done: Callable[[float], None],
    ) -> list[ScoredText]:
        """Step 4."""
        texts = [state.text for state in states]
        executed = [state.executed for state in states]
        return score_calls(
            self._model,
            texts,
            executed,
            self._tau_floor,
            self._method.input_rule,
            done=done,
        )

    def _annotation(self, state: _TextState, scored: ScoredText) -> Annotation:
        funnel = tuple(
            tool_funnel(
                tool,
                state.selected[tool].rule,
                state.sampled.get(tool),
                state.executed,
                scored,
            )
            for tool in self._prompts
        )
        sampling = [
            part for text in state.sampled.values() for part in text.work
        ]
        status: Status = "annotated" if scored.calls else "no_calls"
        return Annotation(
            state.text,
            status,
            calls=scored.calls,
            funnel=funnel,
            work=(*sampling, *scored.work),
        )


def _untold(share: float) -> None:
    """Nobody wants to know what share of a batch is done."""


def _part(
    done: Callable[[float], None], start: float, end: float
) -> Callable[[float], None]:
    """What a step calls that takes a batch from the share `start` to `end`."""
    return lambda share: done(start + share * (end - start))


def _failed(text: Text, error: Exception) -> Annotation:
    """The row of a text on which a step failed; called while `error` is handled."""
    text_id = text.text_id
    extra = {"text_id": text_id}
    logger.warning("text %d failed", text_id, exc_info=True, extra=extra)
    return Annotation(text, "failed", f"{type(error).__name__}: {error}")


def _log_lost_calls(states: Sequence[_TextState]) -> None:
    """Log calls lost to the tool, not to their input: a deadline, a lost replica.

    One line for each tool and reason.
    """
    lost: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for state in states:
        for call in state.executed:
            if call.reason in TRANSIENT:
                places = lost.setdefault((call.candidate.tool, call.reason), [])
                places.append((state.text.text_id, call.candidate.position))
    for (tool, reason), places in lost.items():
        text_id, position = places[0]
        first = {"text_id": text_id, "position": position}
        lost_calls = {"tool": tool, "error": reason, "calls": len(places)}
        logger.warning(
            "%s: %d calls of a batch have no result (%s), the first of text %d",
            *(tool, len(places), reason, text_id),
            extra=lost_calls | first,
        )


def tool_funnel(
    tool: str,
    selection: str,
    sampled: SampledText | None,
    executed: Sequence[ExecutedCall],
    scored: ScoredText,
) -> Funnel:
    """What became of one text under one tool; `executed` may hold calls of others.

    A text that the tool's prompt leaves no room for counts as not selected.
    """
    if sampled is None:
        return Funnel(tool, selection)
    if sampled.failed is not None:
        return Funnel(tool, f"no: {sampled.failed}")
    executed = [call for call in executed if call.candidate.tool == tool]
    discarded = Counter(sampled.discarded)
    discarded.update(
        f"tool: {call.reason}" for call in executed if call.result is None
    )
    discarded.update(scored.discarded.get(tool, {}))
    return Funnel(
        tool,
        selection,
        positions=sampled.positions,
        draws=sampled.draws,
        candidates=len(sampled.candidates),
        executed=sum(call.result is not None for call in executed),
        scored=sum(call.tool == tool for call in scored.calls),
        discarded=dict(discarded),
    )


def prompt_of(tool: str, method: MethodConfig) -> PromptTemplate | None:
    """The prompt of a tool; None if the method uses none. Raises PromptError."""
    if not method.use_prompts:
        return None
    return load_prompt(
        tool, method.prompts, method.of(tool).prompt, method.tools
    )
