"""One text through steps 1-4, with everything that the stages drop on the way.

In: a text and its selection, the model, a client of the tools. Out: a `Trial`: the row that annotate would
write, and every position and draw. Beyond annotate, L_call is computed for every call, not only for those
that may reach tau_f.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import tool_funnel
from pipeline.method.drawn_calls import SamplingRequest, SamplingTrace
from pipeline.method.execution import ExecutedCall, execute
from pipeline.method.filtering import ScoredText, kept, score_calls
from pipeline.method.sampling import sample_calls
from pipeline.method.selection import Selection
from tools_service.base.errors import brief
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import Malformed
from tools_service.syntax.prompts import PromptTemplate
from tools_service.tools.client import ToolClient

MIN_POSITIONS = 3
"""So many of the likeliest positions are in a trial even if they do not reach tau_s."""


@dataclass(slots=True)
class Draw:
    """Equal draws at one position: a scored call, or `lost` says why not."""

    written: str
    """By the model after <API>, up to the token that made it no call."""
    count: int = 0
    input: str | None = None
    result: str | None = None
    call: Call | None = None
    lost: str | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A place where a call might help."""

    rank: int
    """From 1, by falling p(<API>)."""
    position: int
    """Character offset in the text."""
    p_api: float
    chosen: bool
    """Whether it is in I."""
    draws: tuple[Draw, ...]
    """Calls by falling gain, then the others."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one text. The fields after `annotation` are empty if the text failed."""

    selection: Selection
    annotation: Annotation
    p_api: tuple[float, ...] = ()
    """Of all positions of the text, falling."""
    positions: tuple[Position, ...] = ()
    """Those in I and the likeliest others, by rank."""

    @property
    def failed(self) -> str | None:
        """Why the text went through no stage, or not through all."""
        [funnel] = self.annotation.funnel or [None]
        if self.annotation.status == "failed" or funnel is None:
            return self.annotation.reason
        return None if self.p_api else funnel.selection.removeprefix("no: ")

    def kept(self, tau_f: float) -> list[Call]:
        """The scored calls with a gain of at least `tau_f`."""
        return [call for call in self.annotation.calls if kept(call, tau_f)]


def try_text(
    model: LanguageModel,
    tools: ToolClient,
    prompt: PromptTemplate | None,
    method: MethodConfig,
    text: Text,
    selection: Selection,
) -> Trial:
    """Steps 2-4 on a text for the tool of `method`; a failure becomes part of the trial.

    Raises NonFiniteError if a probability or a loss is not finite.
    """
    [tool] = method.tools
    try:
        request = SamplingRequest(text, tool)
        [sampled] = sample_calls(model, [request], {tool: prompt}, method, trace=True)
        [executed] = asyncio.run(execute([sampled.candidates], [selection.date], tools))
        tau_floor = {tool: method.of(tool).tau_f}
        [scored] = score_calls(model, [text], [executed], tau_floor, method.input_rule, all_losses=True)
    except NonFiniteError:
        raise
    except Exception as error:  # isolation, as in annotate: the other texts go on
        reason = f"{type(error).__name__}: {brief(error)}"
        return Trial(selection, Annotation(text, "failed", reason))
    annotation = Annotation(
        text,
        "annotated" if scored.calls else "no_calls",
        calls=scored.calls,
        funnel=(tool_funnel(tool, selection.rule, sampled, executed, scored),),
        work=(*sampled.work, *scored.work),
    )
    if sampled.trace is None:
        return Trial(selection, annotation)
    draws = _draws(sampled.trace, executed, scored, method.of(tool))
    return Trial(selection, annotation, *_positions(sampled.trace, draws))


def _positions(
    trace: SamplingTrace, draws: dict[int, list[Draw]]
) -> tuple[tuple[float, ...], tuple[Position, ...]]:
    """p(<API>) everywhere, and the positions to show."""
    usable = np.flatnonzero(trace.starts >= 0)
    # Of equal probabilities the earlier position first, as `select_positions` has it.
    ranked = usable[np.argsort(-trace.p_api[usable], kind="stable")]
    chosen = set(trace.positions.tolist())
    positions = [
        Position(
            rank,
            position=int(trace.starts[index]),
            p_api=float(trace.p_api[index]),
            chosen=index in chosen,
            draws=tuple(draws.get(index, ())),
        )
        for rank, index in enumerate(ranked.tolist(), start=1)
        if index in chosen or rank <= MIN_POSITIONS
    ]
    return tuple(trace.p_api[ranked].tolist()), tuple(positions)


def _draws(
    trace: SamplingTrace, executed: Sequence[ExecutedCall], scored: ScoredText, settings: ToolMethod
) -> dict[int, list[Draw]]:
    """The distinct draws at each position of I."""
    distinct: dict[tuple[int, str, str | None], Draw] = {}
    for index, (written, parsed) in zip(np.repeat(trace.positions, settings.m), trace.draws, strict=True):
        malformed = parsed.reason if isinstance(parsed, Malformed) else None
        call_input = None if isinstance(parsed, Malformed) else parsed
        key = int(index), written if call_input is None else call_input, malformed
        draw = distinct.setdefault(key, Draw(written, input=call_input, lost=malformed))
        draw.count += 1
    calls = {(call.position, call.input): call for call in scored.calls}
    # The filter counts reasons. It does not say which call has which, where there are several.
    unscored = " or ".join(reason for reasons in scored.discarded.values() for reason in reasons)
    for executed_call in executed:
        candidate = executed_call.candidate
        draw = distinct[candidate.token_index, candidate.input, None]
        draw.result, draw.call = executed_call.result, calls.get((candidate.position, candidate.input))
        if draw.call is not None:
            draw.kept = kept(draw.call, settings.tau_f)
        else:
            draw.lost = unscored if draw.result is not None else f"tool: {executed_call.reason}"
    by_position: dict[int, list[Draw]] = {}
    for (index, _, _), draw in sorted(distinct.items(), key=lambda item: _order(item[1])):
        by_position.setdefault(index, []).append(draw)
    return by_position


def _order(draw: Draw) -> tuple[bool, float, bool, int]:
    gain = draw.call.gain if draw.call is not None else 0.0
    return draw.call is None, -gain, draw.input is None, -draw.count
