"""Step 4, filter: does a call with its result make the text after it easier to predict? (paper section 2)

In: texts with the calls that have a result. Out: for each the losses L+, L_i(empty), L_i(e(c)) and the gain
``min(L_empty, L_call) - L_plus``. A call is kept if its gain is at least tau_f; that choice is the merge's,
which is why all scored calls come out. Prefixes stand before the whole text, not at i: M has not yet seen
calls inside text. Says nothing about how results were obtained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.base.cost import lower_bound_scoring
from pipeline.base.records import Call, Candidate, Cost, Phase, PhaseWork, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall
from pipeline.syntax.calls import CallError, linearise
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.tools.contract import ToolName

WEIGHTS = np.array([5, 4, 3, 2, 1]) / 15  # w_t = max(0, 1 - 0.2 t), normalised once over all t


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One text's scored calls, by position; what was not scored, by tool and reason; the work of the phases
    empty, plus and call."""

    text: Text
    calls: tuple[Call, ...] = ()
    discarded: dict[ToolName, dict[str, int]] = field(default_factory=dict)
    work: tuple[PhaseWork, ...] = ()


def weighted_loss(logprobs: np.ndarray) -> float:
    """``-sum_t w_t log p(x_{i+t})`` in nats, for the log-probabilities of at most five tokens from i on.

    At the end of a text fewer are left; their weights stay as they are.
    """
    return -float(WEIGHTS[: len(logprobs)] @ logprobs)


def kept(call: Call, tau_f: float) -> bool:
    """Whether ``L- - L+ >= tau_f``.

    Raises ValueError for a call whose l_call was left out under a higher threshold than `tau_f`.
    """
    if call.l_call is None and call.gain >= tau_f:
        raise ValueError(
            f"{call.tool}({call.input}) at {call.position}: not scored for thresholds as low as {tau_f}; "
            "annotate with a tau_f no higher than that"
        )
    return call.gain >= tau_f


def only_after(argument: str, text: str, position: int) -> bool:
    """The MT rule: whether a call's input text appears after its position and not before it; such a call is
    dropped."""
    return argument in text[position:] and argument not in text[:position]


def score_calls(
    model: LanguageModel,
    texts: Sequence[Text],
    executed: Sequence[Sequence[ExecutedCall]],
    tau_floor: Mapping[ToolName, float],
) -> list[ScoredText]:
    """The losses of every call with a result, in the order of `texts`.

    `tau_floor` is the lowest threshold of interest by tool: L_i(e(c)) can only lower a gain, so it is
    computed only where l_empty - l_plus reaches it. Raises NonFiniteError, never averages one in.
    """
    scorer = _Scorer(model, texts, executed)
    l_plus = scorer.losses("plus", scorer.jobs)
    l_empty = scorer.losses("empty", scorer.jobs)
    close = [job for job in scorer.jobs if l_empty[job] - l_plus[job] >= tau_floor[job.candidate.tool]]
    l_call = scorer.losses("call", close)
    calls: list[list[Call]] = [[] for _ in texts]
    for job in scorer.jobs:
        calls[job.text].append(_call(job, l_plus[job], l_empty[job], l_call.get(job)))
    return [
        ScoredText(
            text,
            tuple(sorted(calls[index], key=lambda call: call.position)),
            {tool: dict(reasons) for tool, reasons in scorer.discarded[index].items()},
            scorer.work(index),
        )
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True, slots=True)
class _Job:
    """One call to score, in text number `text`."""

    text: int
    candidate: Candidate
    result: str

    def prefix(self, phase: Phase) -> str:
        """z: nothing, e(c) or e(c, r), for the three losses."""
        if phase == "empty":
            return ""
        result = self.result if phase == "plus" else None
        return linearise(self.candidate.tool, self.candidate.input, result)


@dataclass(frozen=True, slots=True)
class _Run:
    """One sequence that was scored, and the number of its log-probabilities."""

    tool: ToolName | None
    phase: Phase
    ids: Sequence[int]
    targets: int
    cost: Cost


def _call(job: _Job, l_plus: float, l_empty: float, l_call: float | None) -> Call:
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
    )


class _Scorer:
    """The forwards of one batch: one for each distinct prefix of each text, over all tools and positions."""

    def __init__(
        self, model: LanguageModel, texts: Sequence[Text], executed: Sequence[Sequence[ExecutedCall]]
    ) -> None:
        self.model, self.texts = model, texts
        self.ids = [pieces.ids for pieces in model.encode([text.text for text in texts])]
        self.runs: list[list[_Run]] = [[] for _ in texts]
        self.discarded: list[dict[ToolName, Counter[str]]] = [{} for _ in texts]
        self.prefixes: dict[str, np.ndarray] = {"": np.array(model.call_tokens.bos, dtype=np.int64)}
        jobs = [
            _Job(index, call.candidate, call.result)
            for index, calls in enumerate(executed)
            for call in calls
            if call.result is not None
        ]
        jobs = [job for job in jobs if self._writable(job)]
        self._encode_prefixes(jobs)
        self.jobs = [job for job in jobs if self._scorable(job)]

    def losses(self, phase: Phase, jobs: Sequence[_Job]) -> dict[_Job, float]:
        """L_i of every job under the prefix of this phase: nothing, e(c) or e(c, r)."""
        together: dict[tuple[int, str], list[_Job]] = {}
        for job in jobs:
            together.setdefault((job.text, job.prefix(phase)), []).append(job)
        sequences, wanted, starts = [], [], []
        for (text, prefix), group in together.items():
            before, ids = self.prefixes[prefix], self.ids[text]
            tokens = np.array(sorted({job.candidate.token_index for job in group}))
            targets = np.unique(tokens[:, None] + np.arange(len(WEIGHTS)))
            targets = targets[targets < len(ids)]
            sequences.append(np.concatenate([before, ids[: targets[-1] + 1]]))
            wanted.append(len(before) + targets)
            starts.append(targets)
        found, costs = token_logprobs(self.model, sequences, wanted, phase)
        for (text, _), group, ids, targets, cost in zip(
            together, together.values(), sequences, starts, costs, strict=True
        ):
            tool = None if phase == "empty" else group[0].candidate.tool
            self.runs[text].append(_Run(tool, phase, ids.tolist(), len(targets), cost))
        out: dict[_Job, float] = {}
        for group, targets, logprobs in zip(together.values(), starts, found, strict=True):
            for job in group:
                first = job.candidate.token_index
                window = (targets >= first) & (targets < first + len(WEIGHTS))
                out[job] = weighted_loss(logprobs[window])
                if not np.isfinite(out[job]):
                    text_id, tool = self.texts[job.text].text_id, job.candidate.tool
                    raise NonFiniteError(f"the loss ({phase})", text_id, tool, first)
        return out

    def work(self, text: int) -> tuple[PhaseWork, ...]:
        """What was run for one text, by tool and phase. Of a beginning that several sequences share, the
        least counts once: under the earliest phase, then the earliest sequence."""
        order: list[Phase] = ["empty", "plus", "call"]
        runs = sorted(self.runs[text], key=lambda run: order.index(run.phase))
        least = lower_bound_scoring([run.ids for run in runs], [run.targets for run in runs])
        sums: dict[tuple[ToolName | None, Phase], tuple[Cost, Cost]] = {}
        for run, smallest in zip(runs, least, strict=True):
            before = sums.get((run.tool, run.phase), (Cost(), Cost()))
            sums[run.tool, run.phase] = before[0] + smallest, before[1] + run.cost
        return tuple(PhaseWork(*key, *costs) for key, costs in sums.items())

    def _writable(self, job: _Job) -> bool:
        """Whether the call can be written with its result; tools clean theirs, so this is the last resort."""
        try:
            job.prefix("plus")
        except CallError:
            self._discard(job, "unwritable")
            return False
        return True

    def _discard(self, job: _Job, reason: str) -> None:
        self.discarded[job.text].setdefault(job.candidate.tool, Counter())[reason] += 1

    def _encode_prefixes(self, jobs: Sequence[_Job]) -> None:
        phases: tuple[Phase, Phase] = ("plus", "call")
        strings = {job.prefix(phase) for job in jobs for phase in phases}
        found = tokenize_continuations(self.model.tokenizer, sorted(strings))
        bos = self.prefixes[""]
        for string, pieces in zip(sorted(strings), found, strict=True):
            self.prefixes[string] = np.concatenate([bos, pieces.ids])

    def _scorable(self, job: _Job) -> bool:
        """Whether all three losses exist, and the MT rule lets the call pass; else the reason is counted."""
        candidate, text = job.candidate, self.texts[job.text].text
        end = min(candidate.token_index + len(WEIGHTS), len(self.ids[job.text]))
        reason = None
        if candidate.token_index == 0 and not self.model.call_tokens.bos:
            reason = "position_not_scorable"
        elif len(self.prefixes[job.prefix("plus")]) + end - 1 > self.model.max_positions:
            reason = "context"
        elif candidate.tool == "MT" and only_after(candidate.input, text, candidate.position):
            reason = "input_only_after_position"
        if reason:
            self._discard(job, reason)
        return reason is None
