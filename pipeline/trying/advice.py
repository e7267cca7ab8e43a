"""Which stage loses most, and what to change.

In: a `Summary`. Out: sentences. Each names numbers, then an option or the prompt. The filter stands apart,
because it is meant to drop most calls.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.trying.scan import shown_reasons
from pipeline.trying.summary import TOOL_REASON, Summary
from tools_service.contract.tool import TRANSIENT

_NOTABLE = 0.1
"""A smaller share needs no advice."""
_LARGE = 0.5
"""A loss of a larger share is named even if another one is the largest."""

_MALFORMED = {
    "wrong_tool": "name another tool or none: {given_name}show more calls of {tool} in the prompt",
    "name_too_unlikely": "do not find the name likely enough: show more calls of {tool} in the prompt",
    "too_long": (
        "are not closed after {max_call_tokens} tokens: show shorter calls in the prompt, or raise "
        "--method.{section}.max-call-tokens"
    ),
    "no_parenthesis": "have no closing parenthesis: show whole calls in the prompt",
    "empty_input": "have no input: show calls with an input in the prompt",
    "input_not_empty": "have an input, which {tool} does not take: show calls without one in the prompt",
    "arrow": "already have a result: the calls in the prompt must have none",
}
_OTHERWISE = "are malformed ({reason}): make the calls in the prompt clearer"
_UNSCORED = {
    "context": "lower --corpus.max-tokens or --tools.max-result-tokens, so that text and call fit the model",
    "input_only_after_position": "show calls that come after their input in the prompt",
}


def advice(summary: Summary, tool: str) -> Iterator[str]:
    """The largest loss before the filter, what the filter says, and what else may find more."""
    yield from _few_selected(summary)
    yield from _largest_loss(summary, tool)
    yield from _filter(summary)
    yield from _more(summary)


def _few_selected(summary: Summary) -> Iterator[str]:
    stage = summary.selected
    if stage.lost and stage.share_lost > 0.9:
        yield (
            f"Only {_of(stage.left, stage.entered)} texts are selected ({shown_reasons(stage.lost)}): if "
            "more of them could use the tool, widen its `select`"
        )


def _largest_loss(summary: Summary, tool: str) -> Iterator[str]:
    hints = {"located": _located, "well_formed": _well_formed, "answered": _answered, "scored": _scored}
    lost = {name: getattr(summary, name).share_lost for name in hints}
    worst, *others = sorted(hints, key=lambda name: -lost[name])
    if summary.failed:
        reason, number = next(iter(summary.failed.items()))
        yield f"{_of(number, summary.texts)} texts failed: {reason}"
    if lost[worst] > _NOTABLE:
        yield f"Largest loss before the filter: {hints[worst](summary, tool)}"
    elif summary.well_formed.entered:
        yield f"No stage before the filter loses more than {_NOTABLE:.0%}"
    for name in others:
        if lost[name] > _LARGE:
            yield f"Another large loss: {hints[name](summary, tool)}"


def _located(summary: Summary, tool: str) -> str:
    stage, tau_s = summary.located, summary.settings.tau_s
    missed = sorted((p_api for p_api in summary.best_p_api if p_api <= tau_s), reverse=True)
    half = missed[(len(missed) - 1) // 2]
    return (
        f"{_of(stage.entered - stage.left, stage.entered)} texts have no position with p(<API>) > tau_s = "
        f"{tau_s:g}. A --tau-s below {half:.2g} gives half of them one; so may a prompt that shows where "
        f"calls of {tool} belong"
    )


def _well_formed(summary: Summary, tool: str) -> str:
    reason, number = next(iter(summary.well_formed.lost.items()))
    settings = summary.settings
    hint = _MALFORMED.get(reason, _OTHERWISE).format(
        tool=tool,
        section=tool.lower(),
        reason=reason,
        max_call_tokens=settings.max_call_tokens,
        given_name="" if settings.given_name else "try --given-name, or ",
    )
    return f"{number / summary.well_formed.entered:.0%} of the draws {hint}"


def _answered(summary: Summary, tool: str) -> str:
    reason, number = next(iter(summary.answered.lost.items()))
    reason = reason.removeprefix(TOOL_REASON)
    hint = (
        f"`toolformer-tools call {tool}` shows what is wrong with the tool"
        if reason in TRANSIENT
        else "show inputs in the prompt that the tool takes, or let it take these"
    )
    return f"{_of(number, summary.answered.entered)} calls have no result ({reason}): {hint}"


def _scored(summary: Summary, tool: str) -> str:
    reason, number = next(iter(summary.scored.lost.items()))
    hint = _UNSCORED.get(reason, "they cannot be scored")
    return f"{_of(number, summary.scored.entered)} calls have a result but no score ({reason}): {hint}"


def _filter(summary: Summary) -> Iterator[str]:
    stage, tau_f = summary.kept, summary.settings.tau_f
    if not stage.entered:
        return
    texts, largest = summary.texts_kept.left, summary.gains[-1]
    if largest <= 0:
        yield (
            "The filter: no result makes what follows easier to predict. Show calls right before what their "
            "result says in the prompt, select texts that hold such results, or use a larger model"
        )
        return
    lower = [(at, number) for at, number in summary.texts_kept_at().items() if 0 < at < tau_f]
    gaining = max(lower, default=(tau_f, texts))
    sentence = f"The filter: {_of(stage.left, stage.entered)} calls reach tau_f = {tau_f:g}"
    if not stage.left:
        sentence += f", the largest gain is {largest:.2f}"
    if gaining[1] > texts:
        sentence += f"; --tau-f {gaining[0]:g} keeps a call in {gaining[1]} texts in place of {texts}"
    yield sentence


def _more(summary: Summary) -> Iterator[str]:
    settings, kept = summary.settings, summary.kept.left
    if summary.full * 2 > summary.texts and summary.kept_at_last > max(1, _NOTABLE * kept):
        yield (
            f"k = {settings.k} leaves positions out in {_of(summary.full, summary.texts)} texts, and "
            f"{_of(summary.kept_at_last, kept)} kept calls stand at the last one taken: a larger --k may "
            "find more"
        )
    if kept > 2 and summary.kept_drawn_once * 2 > kept:
        yield (
            f"{_of(summary.kept_drawn_once, kept)} kept calls were drawn once in m = {settings.m}: a larger "
            "--m may find more"
        )


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"
