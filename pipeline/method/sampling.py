"""Step 2, sample: where calls might help, and which (paper section 2, "Sampling API Calls").

In: texts, each under a tool, the tools' prompts and settings (tau_s, k, m). Out: for each the distinct
candidate calls, and what became of every other draw, by reason. Texts of all tools are drawn for together;
as draws end, further texts join. Nothing is executed or judged here. Results do not depend on which texts are
sampled together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.cost import PromptLayout, lower_bound_decode, lower_bound_positions
from pipeline.base.records import Candidate, Cost, PhaseWork, Text
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.sampler import Sampler, stream_keys
from pipeline.engine.tree_attention import Usage
from pipeline.syntax.calls import Malformed, parse_call
from pipeline.syntax.prompts import PromptTemplate
from pipeline.syntax.tokenizer import TokenizedText, decode_continuations
from tools_service.tools.contract import ToolName

_FORWARDS = 2  # of a batch of contexts: the contexts themselves, and <API> behind the positions
_SHARE = 0.5  # of a forward's tokens for new contexts, so that others can run on beside them


@dataclass(frozen=True, slots=True)
class Order:
    """A text to sample calls of a tool for."""

    text: Text
    tool: ToolName


@dataclass(frozen=True, slots=True)
class SampledText:
    """One text under one tool. `positions` is the size of I, `draws` m times that; `discarded` counts draws
    by reason.

    `failed` says why the text could not be sampled at all. `work` has the phases positions and decode.
    """

    text: Text
    tool: ToolName
    positions: int = 0
    draws: int = 0
    candidates: tuple[Candidate, ...] = ()
    discarded: dict[str, int] = field(default_factory=dict)
    work: tuple[PhaseWork, ...] = ()
    failed: str | None = None


def sample_calls(
    model: LanguageModel,
    orders: Sequence[Order],
    prompts: Mapping[ToolName, PromptTemplate],
    method: MethodConfig,
) -> list[SampledText]:
    """Candidate calls for every order, in that sequence.

    A text that does not fit the context beside the prompt comes back failed. Raises NonFiniteError when the
    model's probabilities are not finite.
    """
    sampler = _Sampler(model, orders, prompts, method)
    while left := sampler.left():
        failed = None
        try:
            sampler.run(left)
        except torch.OutOfMemoryError as error:
            failed = str(error)
        sampler.collect_finished()
        if failed:  # out of the handler, which holds on to the tensors of the forward that failed
            model.shrink(min(map(sampler.columns, sampler.left()), default=1), failed)
    return sampler.sampled()


def select_positions(p_api: np.ndarray, usable: np.ndarray, tau_s: float, k: int) -> np.ndarray:
    """I: the at most k usable positions with p(<API>) > tau_s, the likeliest first chosen, ascending.

    Of equal probabilities the earlier position wins.
    """
    above = np.flatnonzero(usable & (p_api > tau_s))
    best = above[np.argsort(-p_api[above], kind="stable")[:k]]
    return np.sort(best)


@dataclass(slots=True)
class _Progress:
    """What has become of an order."""

    pieces: TokenizedText
    failed: str | None = None
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # I
    p_api: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [n]
    unscorable: bool = False
    started: bool = False
    draws: range = range(0)  # their numbers while they are under way, position by position
    drawn: list[tuple[int, ...]] | None = None  # their tokens, once all have ended
    usage: Usage = field(default_factory=dict)


class _Sampler:
    """Texts join the draws under way as others end; every forward is shared by whatever is there."""

    def __init__(
        self,
        model: LanguageModel,
        orders: Sequence[Order],
        prompts: Mapping[ToolName, PromptTemplate],
        method: MethodConfig,
    ) -> None:
        self.model, self.orders, self.prompts, self.method = model, orders, prompts, method
        encoded = model.encode([order.text.text for order in orders])
        self.progress = [_Progress(pieces) for pieces in encoded]
        self.draws = Sampler(model)
        for order, progress in zip(orders, self.progress, strict=True):
            size = len(progress.pieces.ids)
            room = model.max_text_tokens(prompts[order.tool], method.of(order.tool).max_call_tokens)
            if not 0 < size <= room:
                progress.failed = (
                    f"context: the text has {size} tokens, beside the prompt of {order.tool} there is room "
                    f"for {room}"
                )

    def left(self) -> list[int]:
        """Orders that are still to be drawn for."""
        return [n for n, one in enumerate(self.progress) if one.failed is None and one.drawn is None]

    def run(self, left: Sequence[int]) -> None:
        """Draws for these orders, from their contexts to the last token."""
        for batch in self._batches(left):
            self._make_room(len(batch) * self.columns(batch[0]))
            self._start(batch)
        self._make_room()

    def collect_finished(self) -> None:
        """Keeps the draws of orders whose draws have all ended; the others will be drawn again, the same."""
        running = self.draws.running()
        for index in self.left():
            progress = self.progress[index]
            if progress.started and not running.intersection(progress.draws):
                progress.drawn = [tuple(self.draws.tokens[number]) for number in progress.draws]
            progress.started = False
        self.draws = Sampler(self.model)

    def _batches(self, left: Sequence[int]) -> list[list[int]]:
        """Orders of one tool and like length each, the longest contexts first."""
        by_tool: dict[ToolName, list[int]] = {}
        for index in left:
            by_tool.setdefault(self.orders[index].tool, []).append(index)
        batches = []
        for tool, mine in by_tool.items():
            prompt = self.model.prompt(self.prompts[tool]).length
            own = [self.columns(index) - prompt for index in mine]
            found = self.model.batch_by_length(own, prompt, _FORWARDS, _SHARE)
            batches += [[mine[place] for place in batch] for batch in found]
        return sorted(batches, key=lambda batch: -self.columns(batch[0]))

    def columns(self, index: int) -> int:
        """Tokens of an order's context."""
        prompt = self.model.prompt(self.prompts[self.orders[index].tool])
        return prompt.length + 2 * len(self.progress[index].pieces.ids) + len(prompt.suffix)

    def _make_room(self, columns: int | None = None) -> None:
        """Goes on drawing until a batch of so many columns may join; without a number, to the end."""
        while held := self.draws.held:
            if columns is not None and held + columns <= self.model.max_batch_tokens:
                break
            self.draws.step()

    def _start(self, batch: Sequence[int]) -> None:
        """Runs the contexts of a batch, chooses the positions, and lets their draws begin."""
        tool = self.orders[batch[0]].tool
        settings, mine = self.method.of(tool), [self.progress[index] for index in batch]
        text_ids = [self.orders[index].text.text_id for index in batch]
        contexts = PrefilledBatch(
            self.model,
            self.model.prompt(self.prompts[tool]),
            [progress.pieces.ids for progress in mine],
            [progress.usage for progress in mine],
        )
        for progress, text_id, p in zip(mine, text_ids, contexts.positions(), strict=True):
            if not np.isfinite(p).all():
                raise NonFiniteError("p(<API>)", text_id, tool, int(np.flatnonzero(~np.isfinite(p))[0]))
            progress.p_api = p
            self._choose(progress, settings)
        self._draw(contexts, tool, mine, text_ids)
        for progress in mine:
            progress.started = True

    def _draw(
        self, contexts: PrefilledBatch, tool: ToolName, mine: Sequence[_Progress], text_ids: Sequence[int]
    ) -> None:
        """Lets the draws at the chosen positions begin, if there are any."""
        settings, counts = self.method.of(tool), [len(progress.chosen) for progress in mine]
        if not sum(counts):
            return
        row = np.repeat(np.arange(len(mine)), counts)
        position = np.concatenate([progress.chosen for progress in mine])
        names = [text_ids[text] for text in row.tolist()]
        keys = [
            stream_keys(self.method.seed, name, tool, int(i), settings.m)
            for name, i in zip(names, position, strict=True)
        ]
        numbers = self.draws.add(
            contexts, tool, row, position, np.stack(keys), settings.max_call_tokens, names
        )
        ends = np.cumsum(counts) * settings.m
        for progress, end, count in zip(mine, ends.tolist(), counts, strict=True):
            progress.draws = numbers[end - count * settings.m : end]

    def _choose(self, progress: _Progress, settings: ToolMethod) -> None:
        # Without a BOS the model says nothing about a text's first token alone: no loss, so no call can be
        # kept.
        bos, usable = bool(self.model.call_tokens.bos), progress.pieces.starts >= 0
        progress.unscorable = bool(usable[0] and not bos and progress.p_api[0] > settings.tau_s)
        usable[0] &= bos
        progress.chosen = select_positions(progress.p_api, usable, settings.tau_s, settings.k)

    def sampled(self) -> list[SampledText]:
        """What was found, once all draws have ended."""
        return [self._sampled(index) for index in range(len(self.orders))]

    def _sampled(self, index: int) -> SampledText:
        order, progress = self.orders[index], self.progress[index]
        if progress.failed is not None:
            return SampledText(order.text, order.tool, failed=progress.failed)
        calls: Counter[tuple[int, str]] = Counter()
        discarded = Counter({"position_not_scorable": 1} if progress.unscorable else {})
        at = np.repeat(progress.chosen, self.method.of(order.tool).m).tolist()
        draws: dict[int, list[tuple[int, ...]]] = {int(i): [] for i in progress.chosen}
        drawn = progress.drawn or []
        for i, tokens, call in zip(at, drawn, _read(self.model, order.tool, drawn), strict=True):
            draws[i].append(tokens)
            if isinstance(call, Malformed):
                discarded[call.reason] += 1
            else:
                calls[i, call] += 1
        starts, p_api = progress.pieces.starts, progress.p_api
        candidates = tuple(
            Candidate(order.tool, int(starts[i]), i, float(p_api[i]), call, count)
            for (i, call), count in calls.items()
        )
        return SampledText(
            order.text,
            order.tool,
            positions=len(progress.chosen),
            draws=len(drawn),
            candidates=candidates,
            discarded=dict(discarded),
            work=self._work(order.tool, progress, draws),
        )

    def _work(
        self, tool: ToolName, progress: _Progress, draws: Mapping[int, Sequence[tuple[int, ...]]]
    ) -> tuple[PhaseWork, ...]:
        """The two phases of a text, given its draws by position."""
        prompt = self.model.prompt(self.prompts[tool])
        n, api = len(progress.pieces.ids), len(self.model.call_tokens.api)
        layout = PromptLayout(prompt.length, n, len(prompt.suffix), api)
        return (
            PhaseWork(
                tool, "positions", lower_bound_positions(layout), progress.usage.get("positions", Cost())
            ),
            PhaseWork(
                tool, "decode", lower_bound_decode(layout, draws), progress.usage.get("decode", Cost())
            ),
        )


def _read(model: LanguageModel, tool: ToolName, drawn: Sequence[tuple[int, ...]]) -> list[str | Malformed]:
    """The input of each draw's call, or why it is none. Equal draws are read once."""
    distinct = list(dict.fromkeys(drawn))
    read: dict[tuple[int, ...], str | Malformed] = {}
    special = set(model.tokenizer.all_special_ids)
    for ids, text in zip(distinct, decode_continuations(model.tokenizer, distinct), strict=True):
        read[ids] = Malformed("special_token") if ids[-1] in special else parse_call(text, tool)
    return [read[ids] for ids in drawn]
