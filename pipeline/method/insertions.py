"""What inserted text is worth: the filter of step 4 for any insertion (paper section 2).

In: texts, each with a position and an insertion: a call with its result, a retrieved passage,
a line of reasoning. Out: the losses of the tokens after the position with the insertion
(L_plus), without it (L_empty) and with its form `without_result`, if there is one (L_call),
and the gain ``min(L_empty, L_call) - L_plus`` in nats. The insertion stands before the whole
text, as in the paper, or at the position. Where a tool's calls are scored, filtering.py does
the same with fewer forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from pipeline.base.records import Phase
from pipeline.engine.branches import Branch, branch_logprobs
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel
from pipeline.syntax.tokenizer import TokenizedText, tokenize_continuations

Place = Literal["prefix", "position"]
Weights = Literal["linear", "uniform"]


@dataclass(frozen=True, slots=True)
class Insertion:
    """`insertion` is put into `text` at the character offset `position`, exactly as written.

    `without_result` is what stands there if the inserted text brings nothing: a call
    without its result.
    """

    text: str
    position: int
    insertion: str
    without_result: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredInsertion:
    """Losses in nats; `reason` says why there are none.

    `start` is the character offset where the scored tokens begin: `position`, or the white
    space before it. The log-probabilities are those of the scored tokens, one by one.
    """

    l_plus: float | None = None
    l_empty: float | None = None
    l_call: float | None = None
    gain: float | None = None
    start: int | None = None
    logprobs_plus: tuple[float, ...] = ()
    logprobs_empty: tuple[float, ...] = ()
    logprobs_call: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Which tokens after the position count, and how much.

    "linear" weights fall to zero over `tokens` tokens; five tokens are the paper's filter.
    "uniform" weights are equal. With `tokens` None all tokens that follow count equally.
    """

    tokens: int | None = 5
    weights: Weights = "linear"

    def of(self, tokens_left: int) -> ndarray:
        """The weights of the scored tokens, at most `tokens_left`.

        They sum to 1 over the whole window: at the end of a text fewer tokens are left, and
        their weights stay as they are.
        """
        size = self.tokens or tokens_left
        falling = self.weights == "linear" and self.tokens is not None
        weights = np.arange(size, 0.0, -1.0) if falling else np.ones(size)
        normalised: ndarray = weights / weights.sum()
        return normalised[:tokens_left]


@dataclass(frozen=True, slots=True)
class _Job:
    """An insertion that can be scored: its place among the insertions, and in the tokens."""

    number: int
    text: int
    index: int  # of the first scored token
    end: int  # after the last scored token
    prefixes: dict[Phase, str]


def score_insertions(
    model: LanguageModel,
    insertions: Sequence[Insertion],
    *,
    place: Place = "prefix",
    window: Window = Window(),
) -> list[ScoredInsertion]:
    """The worth of every insertion, in order.

    Insertions that cannot be scored have a reason and cost no other its score. Insertions
    into equal texts share what they can: L_empty in either place, and the whole text where
    they stand at the position. The losses equal those of a plain forward for each
    (tests/pipeline/method/test_insertions.py).
    """
    texts = list(dict.fromkeys(item.text for item in insertions))
    number_of_text = {text: number for number, text in enumerate(texts)}
    encoded = model.encode(texts)
    strings = sorted(
        {
            string
            for item in insertions
            for string in (item.insertion, item.without_result)
            if string
        }
    )
    tokenized = tokenize_continuations(model.tokenizer, strings)
    z_ids = {"": np.zeros(0, dtype=np.int64)}
    z_ids |= {
        string: tokens.ids
        for string, tokens in zip(strings, tokenized, strict=True)
    }
    scorer = _Scorer(model, encoded, z_ids, place)
    results: list[ScoredInsertion | None] = [None] * len(insertions)
    jobs: list[_Job] = []
    for number, item in enumerate(insertions):
        job = _job(number, item, number_of_text[item.text], encoded, window)
        if isinstance(job, _Job):
            job = scorer.refusal(job) or job
        if isinstance(job, str):
            results[number] = ScoredInsertion(reason=job)
        else:
            jobs.append(job)
    logprobs = scorer.logprobs(jobs)
    for job in jobs:
        item = insertions[job.number]
        start = int(encoded[job.text].starts[job.index])
        results[job.number] = _scored(
            {phase: logprobs[job.number, phase] for phase in job.prefixes},
            item,
            max(start, 0),
            window.of(job.end - job.index),
        )
    return [result for result in results if result is not None]


def _scored(
    logprobs: dict[Phase, ndarray],
    item: Insertion,
    start: int,
    weights: ndarray,
) -> ScoredInsertion:
    losses = {
        phase: -float(weights @ values) for phase, values in logprobs.items()
    }
    if not np.isfinite(list(losses.values())).all():
        return ScoredInsertion(reason="not_finite")
    without = min(losses["empty"], losses.get("call", losses["empty"]))
    by_token = {
        phase: tuple(values.tolist()) for phase, values in logprobs.items()
    }
    return ScoredInsertion(
        l_plus=losses["plus"],
        l_empty=losses["empty"],
        l_call=losses.get("call"),
        gain=without - losses["plus"],
        start=start,
        logprobs_plus=by_token["plus"],
        logprobs_empty=by_token["empty"],
        logprobs_call=by_token.get("call", ()),
    )


def _job(
    number: int,
    item: Insertion,
    text: int,
    encoded: Sequence[TokenizedText],
    window: Window,
) -> _Job | str:
    """The insertion in tokens, or why it cannot be scored."""
    if not 0 <= item.position <= len(item.text):
        return "position_outside_text"
    starts = encoded[text].starts
    if item.position == len(item.text) or not len(starts):
        return "nothing_after_position"
    # The last token that begins at or before the position. White space between belongs to
    # that token: " Oslo" has the same place before its space and behind it.
    before = np.flatnonzero((starts >= 0) & (starts <= item.position))
    index = int(before[-1])
    if item.text[starts[index] : item.position].strip():
        return "position_inside_token"
    tokens_left = len(starts) - index
    size = min(window.tokens or tokens_left, tokens_left)
    prefixes: dict[Phase, str] = {"empty": "", "plus": item.insertion}
    if item.without_result is not None:
        prefixes["call"] = item.without_result
    return _Job(number, text, index, index + size, prefixes)


class _Scorer:
    """The forwards of one list of insertions."""

    def __init__(
        self,
        model: LanguageModel,
        encoded: Sequence[TokenizedText],
        z_ids: dict[str, ndarray],
        place: Place,
    ) -> None:
        self.model = model
        self.bos = np.array(model.call_tokens.bos, dtype=np.int64)
        self.x_ids = [text.ids for text in encoded]
        self.z_ids = z_ids
        self.place = place

    def refusal(self, job: _Job) -> str | None:
        """Why the model cannot score the insertion, if so."""
        if job.index == 0 and not len(self.bos):
            return "position_not_scorable"  # nothing predicts the first token
        longest = max(len(self.z_ids[z]) for z in job.prefixes.values())
        if len(self.bos) + longest + job.end - 1 > self.model.max_positions:
            return "context"
        return None

    def logprobs(
        self, jobs: Sequence[_Job]
    ) -> dict[tuple[int, Phase], ndarray]:
        """The log-probabilities of the scored tokens, by insertion and prefix."""
        if self.place == "position":
            return self._at_position(jobs)
        return self._as_prefix(jobs)

    def _as_prefix(
        self, jobs: Sequence[_Job]
    ) -> dict[tuple[int, Phase], ndarray]:
        """One forward of z + x, as far as it is needed, for each text and z."""
        groups: dict[tuple[int, str], list[tuple[_Job, Phase]]] = {}
        for job in jobs:
            for phase, z in job.prefixes.items():
                groups.setdefault((job.text, z), []).append((job, phase))
        sequences: list[ndarray] = []
        wanted: list[ndarray] = []
        for (text, z), members in groups.items():
            end = max(job.end for job, _ in members)
            indices = [np.arange(job.index, job.end) for job, _ in members]
            before = np.concatenate([self.bos, self.z_ids[z]])
            sequences.append(np.concatenate([before, self.x_ids[text][:end]]))
            wanted.append(len(before) + np.unique(np.concatenate(indices)))
        values, _ = token_logprobs(self.model, sequences, wanted, "plus")
        results: dict[tuple[int, Phase], ndarray] = {}
        for ((_, z), members), scored, logprobs in zip(
            groups.items(), wanted, values, strict=True
        ):
            offset = len(self.bos) + len(self.z_ids[z])
            for job, phase in members:
                first = np.searchsorted(scored, offset + job.index)
                size = job.end - job.index
                results[job.number, phase] = logprobs[first : first + size]
        return results

    def _at_position(
        self, jobs: Sequence[_Job]
    ) -> dict[tuple[int, Phase], ndarray]:
        """Each z and its scored tokens are a branch of the text before the position."""
        branches: list[dict[tuple[int, int, str], Branch]]
        branches = [{} for _ in self.x_ids]
        for job in jobs:
            for z in job.prefixes.values():
                scored = self.x_ids[job.text][job.index : job.end]
                ids = np.concatenate([self.z_ids[z], scored])
                after = len(self.bos) + job.index
                wanted = np.arange(len(ids) - len(scored), len(ids))
                key = job.index, job.end, z
                branches[job.text][key] = Branch(after, ids, wanted)
        trunks = [np.concatenate([self.bos, ids]) for ids in self.x_ids]
        values = branch_logprobs(
            self.model, trunks, [list(b.values()) for b in branches], "plus"
        )
        of_branch = [
            dict(zip(b, v, strict=True))
            for b, v in zip(branches, values, strict=True)
        ]
        return {
            (job.number, phase): of_branch[job.text][job.index, job.end, z]
            for job in jobs
            for phase, z in job.prefixes.items()
        }
