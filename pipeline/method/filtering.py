"""Step 4, filter: does a call with its result make the text after it easier to predict?
(paper section 2, "Filtering API Calls")

In: texts with their executed calls. Out: for each call with a result the losses L_plus = L_i(e(c,
r)), L_empty = L_i(empty), L_call = L_i(e(c)) and the gain ``min(L_empty, L_call) - L_plus``. A call
is kept if its gain is at least tau_f; merge decides that, so all scored calls come out. Prefixes
stand before the whole text, not at i: M has not yet seen calls inside text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy import ndarray

from pipeline.base.records import Call, Candidate, Phase, PhaseWork, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall
from pipeline.method.work import ScoredSequence, scoring_work
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.syntax.calls import CallError, linearise

# w_t = max(0, 1 - 0.2 t), normalised once over all t.
WEIGHTS = np.array([5, 4, 3, 2, 1]) / 15


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One text's scored calls, by position.

    `discarded` counts calls that were not scored, by tool and reason. `work` has the phases
    empty, plus and call.
    """

    text: Text
    calls: tuple[Call, ...] = ()
    discarded: dict[str, dict[str, int]] = field(default_factory=dict)
    work: tuple[PhaseWork, ...] = ()


def weighted_loss(logprobs: ndarray) -> float:
    """``-sum_t w_t log p(x_{i+t})`` in nats, of at most five log-probabilities from i on.

    At the end of a text fewer are left; their weights stay as they are.
    """
    return -float(WEIGHTS[: len(logprobs)] @ logprobs)


def kept(call: Call, tau_f: float) -> bool:
    """Whether ``gain >= tau_f``.

    Raises ValueError for a call whose l_call was left out under a higher threshold.
    """
    if call.l_call is None and call.gain >= tau_f:
        raise ValueError(
            f"{call.tool}({call.input}) at {call.position}: not scored for thresholds as "
            f"low as {tau_f}; annotate with a tau_f no higher than that"
        )
    return call.gain >= tau_f


def only_after(argument: str, text: str, position: int) -> bool:
    """The paper's rule for MT: whether a call's input stands after its position and not before it.

    The caller drops such a call.
    """
    return argument in text[position:] and argument not in text[:position]


def score_calls(
    model: LanguageModel,
    texts: Sequence[Text],
    executed: Sequence[Sequence[ExecutedCall]],
    tau_floor: Mapping[str, float],
    input_rule: Collection[str] = (),
    *,
    all_losses: bool = False,
    done: Callable[[float], None] = lambda share: None,
) -> list[ScoredText]:
    """The losses of every call with a result, in the order of `texts`; others are ignored.

    `tau_floor` is the lowest threshold of interest by tool. L_i(e(c)) can only lower a
    gain, so it is computed only where L_empty - L_plus reaches that threshold; with
    `all_losses` also elsewhere, by forwards of their own, so that no other loss changes.
    Calls of the tools in `input_rule` are dropped if their input stands only after them.
    `done` is told the share of the three losses that is computed. Raises NonFiniteError for a
    loss that is not finite.
    """
    scorer = _Scorer(model, texts, executed, input_rule)
    jobs = scorer.jobs
    l_plus = scorer.losses("plus", jobs)
    done(1 / 3)
    l_empty = scorer.losses("empty", jobs)
    done(2 / 3)
    close = [
        job
        for job in jobs
        if l_empty[job] - l_plus[job] >= tau_floor[job.candidate.tool]
    ]
    l_call = scorer.losses("call", close)
    if all_losses:
        l_call |= scorer.losses("call", [j for j in jobs if j not in l_call])
    calls: list[list[Call]] = [[] for _ in texts]
    for job in jobs:
        calls[job.text].append(
            _call(job, l_plus[job], l_empty[job], l_call.get(job))
        )
    return [
        ScoredText(
            text,
            calls=tuple(sorted(calls[index], key=lambda call: call.position)),
            discarded={
                tool: dict(reasons)
                for tool, reasons in scorer.discarded[index].items()
            },
            work=scoring_work(scorer.scored[index]),
        )
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One call to score, in text number `text`.

    `prefixes` has z for the three losses: nothing, e(c) and e(c, r).
    """

    text: int
    candidate: Candidate
    result: str
    prefixes: dict[Phase, str]


def _call(
    job: _Job,
    l_plus: float,
    l_empty: float,
    l_call: float | None,
) -> Call:
    candidate = job.candidate
    l_minus = l_empty if l_call is None else min(l_empty, l_call)
    return Call(
        tool=candidate.tool,
        position=candidate.position,
        p_api=candidate.p_api,
        input=candidate.input,
        result=job.result,
        l_plus=l_plus,
        l_empty=l_empty,
        l_call=l_call,
        gain=l_minus - l_plus,
        p_name=candidate.p_name,
    )


@dataclass(frozen=True, slots=True)
class _Sequence:
    """z + x for the jobs of one text that share the prefix z."""

    text: int
    tool: str | None  # None for the empty prefix, which tools share
    jobs: list[_Job]
    ids: ndarray  # of z, then of x up to the last target
    # Token indices in x whose log-probabilities are needed, ascending.
    targets: list[int]
    wanted: ndarray  # the same as indices into ids


class _Scorer:
    """The forwards of one batch: one for each distinct prefix of each text."""

    def __init__(
        self,
        model: LanguageModel,
        texts: Sequence[Text],
        executed: Sequence[Sequence[ExecutedCall]],
        input_rule: Collection[str],
    ) -> None:
        self.model = model
        self.input_rule = input_rule
        self.texts = texts
        self.text_ids = [
            e.ids for e in model.encode([text.text for text in texts])
        ]
        self.scored: list[list[ScoredSequence]] = [[] for _ in texts]
        self.discarded: list[dict[str, Counter[str]]] = [{} for _ in texts]
        jobs = [
            job
            for index, calls in enumerate(executed)
            for call in calls
            if (job := self._job(index, call)) is not None
        ]
        bos = np.array(model.call_tokens.bos, dtype=np.int64)
        self.prefix_ids = {"": bos}
        self._encode_prefixes("plus", jobs)
        self.jobs = [job for job in jobs if self._scorable(job)]

    def losses(self, phase: Phase, jobs: Sequence[_Job]) -> dict[_Job, float]:
        """L_i of every job under the prefix of this phase: nothing, e(c) or e(c, r)."""
        self._encode_prefixes(phase, jobs)
        sequences = self._sequences(phase, jobs)
        logprobs, costs = token_logprobs(
            self.model,
            [sequence.ids for sequence in sequences],
            [sequence.wanted for sequence in sequences],
            phase,
        )
        losses: dict[_Job, float] = {}
        for sequence, target_logprobs, cost in zip(
            sequences, logprobs, costs, strict=True
        ):
            self.scored[sequence.text].append(
                ScoredSequence(
                    sequence.tool,
                    phase,
                    sequence.ids.tolist(),
                    len(sequence.targets),
                    cost,
                )
            )
            for job in sequence.jobs:
                i = job.candidate.token_index
                # The targets from i on are i, i + 1, … to the end of the window or text.
                first = bisect_left(sequence.targets, i)
                window = target_logprobs[first : first + len(WEIGHTS)]
                losses[job] = weighted_loss(window)
                if not isfinite(losses[job]):
                    text_id = self.texts[job.text].text_id
                    tool = job.candidate.tool
                    raise NonFiniteError(
                        f"the loss ({phase})", text_id, tool, i
                    )
        return losses

    def _sequences(self, phase: Phase, jobs: Sequence[_Job]) -> list[_Sequence]:
        """One sequence for each text and prefix; it ends with the last token it needs."""
        groups: dict[tuple[int, str], list[_Job]] = {}
        for job in jobs:
            groups.setdefault((job.text, job.prefixes[phase]), []).append(job)
        sequences = []
        for (text, prefix), group in groups.items():
            z, x = self.prefix_ids[prefix], self.text_ids[text]
            windows = [
                range(i, min(i + len(WEIGHTS), len(x)))
                for i in {job.candidate.token_index for job in group}
            ]
            targets = sorted(set().union(*windows))
            ids = np.concatenate([z, x[: targets[-1] + 1]])
            wanted = np.array(targets) + len(z)
            tool = None if phase == "empty" else group[0].candidate.tool
            sequences.append(_Sequence(text, tool, group, ids, targets, wanted))
        return sequences

    def _job(self, text: int, call: ExecutedCall) -> _Job | None:
        """The call, unless it has no result or cannot be written with it.

        Tools already remove what cannot be written; this guards against one that does not.
        """
        candidate, result = call.candidate, call.result
        if result is None:
            return None
        tool, argument = candidate.tool, candidate.input
        try:
            plus = linearise(tool, argument, result)
        except CallError:
            self._discard(text, tool, "unwritable")
            return None
        prefixes: dict[Phase, str] = {
            "empty": "",
            "plus": plus,
            "call": linearise(tool, argument),
        }
        return _Job(text, candidate, result, prefixes)

    def _encode_prefixes(self, phase: Phase, jobs: Sequence[_Job]) -> None:
        """Add the ids of the prefixes of a phase, BOS included."""
        prefixes = {job.prefixes[phase] for job in jobs}
        missing = sorted(prefixes - self.prefix_ids.keys())
        if not missing:
            return
        encoded = tokenize_continuations(self.model.tokenizer, missing)
        bos = self.prefix_ids[""]
        for prefix, tokens in zip(missing, encoded, strict=True):
            self.prefix_ids[prefix] = np.concatenate([bos, tokens.ids])

    def _scorable(self, job: _Job) -> bool:
        """Whether all three losses exist and the rule for inputs lets the call pass.

        Otherwise the reason is counted.
        """
        candidate = job.candidate
        text, text_ids = self.texts[job.text].text, self.text_ids[job.text]
        end = min(candidate.token_index + len(WEIGHTS), len(text_ids))
        longest = len(self.prefix_ids[job.prefixes["plus"]]) + end - 1
        reason = None
        if candidate.token_index == 0 and not self.model.call_tokens.bos:
            # Sampling leaves the position out: only another caller can name it.
            reason = "call_not_scorable"
        elif longest > self.model.max_positions:
            reason = "context"
        elif candidate.tool in self.input_rule and only_after(
            candidate.input, text, candidate.position
        ):
            reason = "input_only_after_position"
        if reason:
            self._discard(job.text, candidate.tool, reason)
        return reason is None

    def _discard(self, text: int, tool: str, reason: str) -> None:
        by_tool = self.discarded[text]
        by_tool.setdefault(tool, Counter())[reason] += 1
