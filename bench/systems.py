"""Who competes in bench.annotate: the engine, the engine with one shortcut less, the plain procedure.

In: a model, tools, the method, texts. Out: a `Run` each, with times, memory, what was fed by phase, and the
scored calls, to be compared. Shortcuts are switched off from outside, where that takes a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.measuring import measured
from bench.plain import Plain
from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Cost, Phase, Text
from pipeline.engine.model import LanguageModel
from pipeline.method import sampling
from pipeline.method.annotator import Annotator
from pipeline.method.filtering import ScoredText, score_calls
from pipeline.syntax.calls import END
from pipeline.syntax.grammar import CLOSED, DEAD, call_head
from tools_service.tools.client import LocalTools

BATCH = 64  # texts, as RayConfig has it


@dataclass(frozen=True)
class Run:
    """One contestant on its texts. `took` has wall_s, cpu_s and peak_mib; `usage` is by phase; `forwards` are
    the model's."""

    name: str
    took: dict[str, float]
    candidates: int
    calls: list[list[Call]]
    usage: dict[Phase, Cost]
    forwards: int = 0


def nothing() -> None:
    """To wait for before the clock starts."""


def run_engine(
    name: str,
    annotator: Annotator,
    model: LanguageModel,
    texts: Sequence[Text],
    batch: int = BATCH,
    ready: Callable[[], Any] = nothing,
) -> tuple[Run, list[Annotation]]:
    """The engine on all texts, `batch` at a time, from when `ready` returns; all that the model ran, prompts
    included."""
    model.usage.clear()
    ready()
    with counted(model) as forwards, measured(model.device) as took:
        parts = [annotator.annotate(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    found = [one for part in parts for one in part]
    if failed := [one for one in found if one.status == "failed"]:
        raise SystemExit(f"{name}: {len(failed)} texts failed: {failed[0].reason}")
    candidates = sum(stage.candidates for one in found for stage in one.funnel)
    calls = [list(one.calls) for one in found]
    return Run(name, took, candidates, calls, dict(model.usage), len(forwards)), found


def run_plain(
    plain: Plain, model: LanguageModel, texts: Sequence[Text], ready: Callable[[], Any] = nothing
) -> Run:
    """The plain procedure, after a text to warm up, from when `ready` returns; its phase plus has all three
    losses."""
    plain.annotate(texts[:1])
    plain.usage.clear()
    plain.candidates = 0
    ready()
    with counted(model) as forwards, measured(model.device) as took:
        calls = plain.annotate(texts)
    return Run("plain procedure", took, plain.candidates, calls, dict(plain.usage), len(forwards))


@contextmanager
def counted(model: LanguageModel) -> Iterator[list[None]]:
    """One element for every forward of the model."""
    forwards: list[None] = []
    lm: Any = model.model
    hook = lm.base_model.register_forward_pre_hook(lambda *_: forwards.append(None))
    yield forwards
    hook.remove()


def without_shortcuts(
    model: LanguageModel, tools: LocalTools, method: MethodConfig, texts: Sequence[Text]
) -> Iterator[Run]:
    """The engine with one shortcut less each time."""
    [tool] = method.tools
    whole = Annotator(model, tools, method)
    yield run_engine("texts one by one", whole, model, texts, batch=1)[0]
    afresh = PromptAfresh(model, tools, method)
    yield run_engine("texts one by one, each with its prompt", afresh, model, texts, batch=1)[0]
    with _set(sampling, "_PREFILL_SHARE", 1.0):
        yield run_engine("no text joins others under way", whole, model, texts)[0]
    if model.can_unpad:
        with _set(model, "can_unpad", False):
            yield run_engine("padding fed", whole, model, texts)[0]
    with _set(model, "_automata", {call_head(tool): patient(model)}):
        yield run_engine("no early end of draws", whole, model, texts)[0]
    if model.separate_head:
        # All logits may not fit: what then shrinks is for this contestant only.
        with _set(model, "separate_head", False), _set(model, "max_batch_tokens", model.max_batch_tokens):
            yield run_engine("logits everywhere", whole, model, texts)[0]
    yield run_engine("each call scored by itself", EachAlone(model, tools, method), model, texts)[0]
    settings = {**method.of(tool).model_dump(), "tau_f": -1e9}
    always = MethodConfig.model_validate(method.model_dump() | {tool.lower(): settings})
    yield run_engine("L(e(c)) always", Annotator(model, tools, always), model, texts)[0]


class PromptAfresh(Annotator):
    """Forgets the prompts' keys and values before every batch."""

    def annotate(self, texts: Sequence[Text]) -> list[Annotation]:
        """As Annotator's."""
        self._model._prompts.clear()
        return super().annotate(texts)


class EachAlone(Annotator):
    """Scores a call at a position without the calls beside it."""

    def _score(self, works: Any) -> list[ScoredText]:
        jobs = [(number, call) for number, work in enumerate(works) for call in work.executed]
        texts = [works[number].text for number, _ in jobs]
        scored = score_calls(self._model, texts, [[call] for _, call in jobs], self._tau_floor)
        merged = []
        for number, work in enumerate(works):
            mine = [one for (text, _), one in zip(jobs, scored, strict=True) if text == number]
            merged.append(ScoredText(work.text, tuple(call for one in mine for call in one.calls)))
        return merged


def patient(model: LanguageModel) -> np.ndarray:
    """A table with which a draw ends only with a ] or a special token."""
    known = len(model.call_tokens.token_strings)
    table = np.zeros((1, model.vocabulary_size), dtype=np.int16)
    table[0, [token for token, piece in enumerate(model.call_tokens.token_strings) if END in piece]] = CLOSED
    table[0, [*model.tokenizer.all_special_ids, *range(known, model.vocabulary_size)]] = DEAD
    return table


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
