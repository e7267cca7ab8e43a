"""Steps 1-4 on one batch of texts: select, sample, execute, filter (paper section 2).

In: texts, a language model, a client of the tools, the method's settings. Out: one `Annotation` per text,
in order, with every scored call and the funnel of each tool. A text on which model or tools break is recorded
as failed and does not take its batch along; scores that are not finite stop everything. While one batch waits
for tools, another may have the model. No Ray.
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
from pipeline.method.execution import ExecutedCall, aexecute
from pipeline.method.filtering import ScoredText, score_calls
from pipeline.method.sampling import Order, SampledText, sample_calls
from pipeline.method.selection import Selection, select
from pipeline.syntax.prompts import load_prompt
from tools_service.base.errors import ToolformerError
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import TRANSIENT, ToolName

logger = logging.getLogger(__name__)

T = TypeVar("T")

HOPELESS = 8
"""When so many texts or more fail and none of their batch succeeds, it is not the texts' fault."""


class BatchFailedError(ToolformerError):
    """Every text of a batch failed."""


@dataclass(slots=True)
class _Work:
    """One text on its way through the steps."""

    text: Text
    selected: dict[ToolName, Selection] = field(default_factory=dict)
    sampled: dict[ToolName, SampledText] = field(default_factory=dict)
    executed: list[ExecutedCall] = field(default_factory=list)

    @property
    def date(self) -> str | None:
        """The day the calendar answers with."""
        return next((chosen.date for chosen in self.selected.values() if chosen.date), None)


class Annotator:
    """One model and the tools. Several batches may be under way at once; the model works on one at a time."""

    def __init__(self, model: LanguageModel, tools: ToolClient, method: MethodConfig) -> None:
        """PromptError if a tool has no usable prompt."""
        self._model = model
        self._tools = tools
        self._method = method
        self._prompts = {tool: load_prompt(tool, method.prompts) for tool in method.tools}
        self._tau_floor = {tool: method.of(tool).tau_f for tool in method.tools}
        # One thread: the model is for one at a time, and memory that a thread has freed it takes again, while
        # another would keep a store of its own.
        self._with_model = ThreadPoolExecutor(1, thread_name_prefix="model")

    def annotate(self, texts: Sequence[Text]) -> list[Annotation]:
        """One annotation per text, in order."""
        return asyncio.run(self.aannotate(texts))

    async def aannotate(self, texts: Sequence[Text]) -> list[Annotation]:
        """The same for an event loop, which is not blocked meanwhile.

        Raises NonFiniteError, and BatchFailedError when all of at least HOPELESS texts fail.
        """
        wanted = [text for text in texts if text.skipped is None]
        found = await self._isolated(wanted)
        if len(found) >= HOPELESS and all(one.status == "failed" for one in found):
            raise BatchFailedError(
                f"all {len(found)} texts of a batch failed, so the fault is hardly theirs; text "
                f"{found[0].text.text_id}: {found[0].reason}"
            )
        annotated = iter(found)
        return [
            next(annotated) if text.skipped is None else Annotation(text, "skipped", text.skipped)
            for text in texts
        ]

    async def _isolated(self, texts: Sequence[Text]) -> list[Annotation]:
        """Whatever breaks a batch is looked for by halving it, until one text stands alone with its error."""
        if not texts:
            return []
        try:
            return await self._steps(texts)
        except NonFiniteError:
            raise
        except Exception as error:  # isolation: the failure becomes a row
            if len(texts) == 1:
                failed = texts[0].text_id
                logger.warning("text %d failed", failed, exc_info=True, extra={"text_id": failed})
                return [Annotation(texts[0], "failed", f"{type(error).__name__}: {error}")]
            half = len(texts) // 2
        return [*await self._isolated(texts[:half]), *await self._isolated(texts[half:])]

    async def _steps(self, texts: Sequence[Text]) -> list[Annotation]:
        works = [_Work(text) for text in texts]
        await asyncio.to_thread(self._select, works)  # beside another batch's use of the model
        await self._in_turn(lambda: self._sample(works))
        candidates = [
            [call for found in work.sampled.values() for call in found.candidates] for work in works
        ]
        executed = await aexecute(candidates, [work.date for work in works], self._tools)
        for work, calls in zip(works, executed, strict=True):
            work.executed = calls
        _log_lost_calls(works)
        scored = await self._in_turn(lambda: self._score(works))
        return [self._annotation(work, found) for work, found in zip(works, scored, strict=True)]

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """Work that needs the model, after what has asked before."""
        return await asyncio.get_running_loop().run_in_executor(self._with_model, work)

    def _select(self, works: Sequence[_Work]) -> None:
        """Step 1."""
        for work in works:
            work.selected = {tool: select(tool, work.text, self._method) for tool in self._prompts}

    def _sample(self, works: Sequence[_Work]) -> None:
        """Step 2."""
        asked = [(work, tool) for tool in self._prompts for work in works if work.selected[tool].chosen]
        orders = [Order(work.text, tool) for work, tool in asked]
        found = sample_calls(self._model, orders, self._prompts, self._method)
        for (work, tool), sampled in zip(asked, found, strict=True):
            work.sampled[tool] = sampled

    def _score(self, works: Sequence[_Work]) -> list[ScoredText]:
        """Step 4."""
        executed = [work.executed for work in works]
        return score_calls(self._model, [work.text for work in works], executed, self._tau_floor)

    def _annotation(self, work: _Work, scored: ScoredText) -> Annotation:
        funnel = tuple(_funnel(tool, work, scored) for tool in self._prompts)
        usage = [part for sampled in work.sampled.values() for part in sampled.work]
        status: Status = "annotated" if scored.calls else "no_calls"
        return Annotation(work.text, status, None, scored.calls, funnel, (*usage, *scored.work))


def _log_lost_calls(works: Sequence[_Work]) -> None:
    """A line for each tool and each reason that says nothing about the input: a deadline, a lost replica."""
    lost: dict[tuple[ToolName, str], list[tuple[int, int]]] = {}
    for work in works:
        for call in work.executed:
            if call.reason in TRANSIENT:
                key = (call.candidate.tool, call.reason)
                lost.setdefault(key, []).append((work.text.text_id, call.candidate.position))
    for (tool, reason), calls in lost.items():
        text_id, position = calls[0]
        logger.warning(
            "%s: %d calls of a batch have no result (%s), the first of text %d",
            *(tool, len(calls), reason, text_id),
            extra={
                "tool": tool,
                "error": reason,
                "calls": len(calls),
                "text_id": text_id,
                "position": position,
            },
        )


def _funnel(tool: ToolName, work: _Work, scored: ScoredText) -> Funnel:
    """What became of one text under one tool. A text the tool's prompt leaves no room for was not chosen."""
    sampled = work.sampled.get(tool)
    if sampled is None:
        return Funnel(tool, work.selected[tool].rule)
    if sampled.failed is not None:
        return Funnel(tool, f"no: {sampled.failed}")
    executed = [call for call in work.executed if call.candidate.tool == tool]
    discarded = Counter(sampled.discarded)
    discarded.update(f"tool: {call.reason}" for call in executed if call.result is None)
    discarded.update(scored.discarded.get(tool, {}))
    return Funnel(
        tool,
        work.selected[tool].rule,
        positions=sampled.positions,
        draws=sampled.draws,
        candidates=len(sampled.candidates),
        executed=sum(call.result is not None for call in executed),
        scored=sum(call.tool == tool for call in scored.calls),
        discarded=dict(discarded),
    )
