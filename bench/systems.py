"""The systems that bench.annotate compares: engine, engine without a shortcut, plain procedure.

In: a model, tools, the method's settings, texts. Out: one `SystemRun` each, with times, memory,
usage by phase and the scored calls. Shortcuts are switched off from outside, where that takes a few
lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.measuring import measured
from bench.plain import PlainAnnotator
from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Cost, Phase, Text
from pipeline.engine.model import LanguageModel
from pipeline.method import sampling
from pipeline.method.annotator import Annotator
from pipeline.method.filtering import ScoredText, score_calls
from pipeline.syntax.grammar import CLOSED, DEAD, call_head
from pipeline.syntax.tokenizer import special_ids
from tools_service.syntax.calls import END
from tools_service.tools.client import LocalTools

BATCH = 64  # texts, as in RayConfig


@dataclass(frozen=True)
class SystemRun:
    """One system's run over its texts. `timing` has wall_s, cpu_s and peak_mib; `usage` is by
    phase; `forwards` counts the model's forwards; `details` are what else is written."""

    name: str
    timing: dict[str, float]
    candidates: int
    calls: list[list[Call]]
    usage: dict[Phase, Cost]
    forwards: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def no_wait() -> None:
    """Start at once. The default of `ready` below, which may wait for other processes."""


def run_engine(
    name: str,
    annotator: Annotator,
    model: LanguageModel,
    texts: Sequence[Text],
    batch: int = BATCH,
    ready: Callable[[], Any] = no_wait,
) -> tuple[SystemRun, list[Annotation]]:
    """Annotate all texts. The clock starts when `ready` returns. SystemExit if a text fails."""
    model.usage.clear()
    ready()
    with count_forwards(model) as forwards, measured(model.device) as timing:
        batches = [annotator.annotate(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    annotations = [annotation for annotated in batches for annotation in annotated]
    if failed := [annotation for annotation in annotations if annotation.status == "failed"]:
        raise SystemExit(f"{name}: {len(failed)} texts failed: {failed[0].reason}")
    candidates = sum(funnel.candidates for annotation in annotations for funnel in annotation.funnel)
    calls = [list(annotation.calls) for annotation in annotations]
    return SystemRun(name, timing, candidates, calls, dict(model.usage), len(forwards)), annotations


def run_plain(
    plain: PlainAnnotator, model: LanguageModel, texts: Sequence[Text], ready: Callable[[], Any] = no_wait
) -> SystemRun:
    """The plain procedure after a warm-up. Its phase "plus" contains all three losses."""
    plain.annotate(texts[:1])
    plain.usage.clear()
    plain.candidates = 0
    ready()
    with count_forwards(model) as forwards, measured(model.device) as timing:
        calls = plain.annotate(texts)
    return SystemRun("plain procedure", timing, plain.candidates, calls, dict(plain.usage), len(forwards))


@contextmanager
def count_forwards(model: LanguageModel) -> Iterator[list[None]]:
    """A list that gets one element for every forward of the model."""
    forwards: list[None] = []
    lm: Any = model.model
    hook = lm.base_model.register_forward_pre_hook(lambda *_: forwards.append(None))
    yield forwards
    hook.remove()


def without_shortcuts(
    model: LanguageModel, tools: LocalTools, method: MethodConfig, texts: Sequence[Text]
) -> Iterator[SystemRun]:
    """The engine, each time with one shortcut switched off."""
    [tool] = method.tools
    whole = Annotator(model, tools, method)
    yield run_engine("texts one by one", whole, model, texts, batch=1)[0]
    uncached = UncachedPrompt(model, tools, method)
    yield run_engine("texts one by one, each with its prompt", uncached, model, texts, batch=1)[0]
    with _attribute(sampling, "_PREFILL_SHARE", 1.0):
        yield run_engine("no continuous batching", whole, model, texts)[0]
    if model.shares_prompts:
        with _attribute(model, "can_share_prompts", False):
            yield run_engine("prompts copied into rows", whole, model, texts)[0]
    if model.can_leave_out_unwanted:
        with _attribute(model, "can_leave_out_unwanted", False):
            yield run_engine("the last layer for all tokens", whole, model, texts)[0]
    if model.can_unpad:
        with _attribute(model, "can_unpad", False):
            yield run_engine("padding fed", whole, model, texts)[0]
    with _attribute(
        model,
        "_automata",
        {(call_head(tool, method.of(tool).takes_input), False): bracket_only_automaton(model)},
    ):
        yield run_engine("no early end of draws", whole, model, texts)[0]
    if model.separate_head:
        # All logits may not fit. The smaller batches that follow are for this system only.
        same_tokens = _attribute(model, "max_batch_tokens", model.max_batch_tokens)
        with _attribute(model, "separate_head", False), same_tokens:
            yield run_engine("logits everywhere", whole, model, texts)[0]
    yield run_engine("each call scored by itself", UnsharedScoring(model, tools, method), model, texts)[0]
    settings = {**method.of(tool).model_dump(), "tau_f": -1e9}
    always = MethodConfig.model_validate(method.model_dump() | {tool.lower(): settings})
    yield run_engine("L(e(c)) always", Annotator(model, tools, always), model, texts)[0]


class UncachedPrompt(Annotator):
    """Drops the KV cache of the prompts before every batch."""

    def annotate(self, texts: Sequence[Text]) -> list[Annotation]:
        """As Annotator's."""
        self._model._prompts.clear()
        return super().annotate(texts)


class UnsharedScoring(Annotator):
    """Scores every call at every position with forwards of its own."""

    def _score(self, works: Any, done: Any) -> list[ScoredText]:
        jobs = [(number, call) for number, work in enumerate(works) for call in work.executed]
        texts = [works[number].text for number, _ in jobs]
        scored = score_calls(self._model, texts, [[call] for _, call in jobs], self._tau_floor)
        calls: list[list[Call]] = [[] for _ in works]
        for (number, _), scored_text in zip(jobs, scored, strict=True):
            calls[number] += scored_text.calls
        return [ScoredText(work.text, tuple(calls[number])) for number, work in enumerate(works)]


def bracket_only_automaton(model: LanguageModel) -> np.ndarray:
    """A table [1, V] with which a draw ends only at a ] or at a special token."""
    known = len(model.call_tokens.token_strings)
    table = np.zeros((1, model.vocabulary_size), dtype=np.int16)
    closing = [token for token, string in enumerate(model.call_tokens.token_strings) if END in string]
    table[0, closing] = CLOSED
    table[0, [*special_ids(model.tokenizer), *range(known, model.vocabulary_size)]] = DEAD
    return table


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
