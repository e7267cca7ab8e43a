"""Step 2, sample: where calls might help, and which (paper section 2, "Sampling API Calls").

In: texts, a tool's prompt and its settings (tau_s, k, m). Out: for each text the distinct candidate calls,
and what became of every other draw, by reason. Nothing is executed or judged here. Results do not depend on
which texts are sampled together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.calls import Malformed, Pieces, parse_call, texts_of
from pipeline.config import ToolMethod
from pipeline.draws import grow, stream_keys
from pipeline.model import LanguageModel, NonFiniteError, Prompt
from pipeline.planning import Layout, least_decode, least_positions
from pipeline.prompts import PromptTemplate
from pipeline.records import Candidate, Cost, Text, ToolName, Work
from pipeline.tree import Tree

_FORWARDS = (
    8  # a batch of texts is worth about that many forwards: the positions, and a step a token of the calls
)


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
    work: tuple[Work, ...] = ()
    failed: str | None = None


def sample_calls(
    model: LanguageModel,
    tool: ToolName,
    template: PromptTemplate,
    texts: Sequence[Text],
    method: ToolMethod,
    seed: int,
) -> list[SampledText]:
    """Candidate calls of `tool` for each text, in the order of `texts`.

    A text that does not fit the context beside the prompt comes back failed. Raises NonFiniteError when the
    model's probabilities are not finite.
    """
    room = model.room(template, method.max_call_tokens)
    encoded = model.encode([text.text for text in texts])
    out: dict[int, SampledText] = {}
    for index, (text, pieces) in enumerate(zip(texts, encoded, strict=True)):
        size = len(pieces.ids)
        if not 0 < size <= room:
            reason = (
                f"context: the text has {size} tokens, beside the prompt of {tool} there is room for {room}"
            )
            out[index] = SampledText(text, tool, failed=reason)
    fitting = [index for index in range(len(texts)) if index not in out]
    if not fitting:
        return [out[index] for index in range(len(texts))]
    prompt = model.prompt(template)
    columns = [2 * len(encoded[index].ids) + len(prompt.suffix) for index in fitting]
    for batch in model.batches(columns, prompt.length, _FORWARDS):
        rows = [fitting[index] for index in batch]
        sampled = _sample_batch(
            model, tool, prompt, [texts[i] for i in rows], [encoded[i] for i in rows], method, seed
        )
        out.update(zip(rows, sampled, strict=True))
    return [out[index] for index in range(len(texts))]


def select_positions(p_api: np.ndarray, usable: np.ndarray, tau_s: float, k: int) -> np.ndarray:
    """I: the at most k usable positions with p(<API>) > tau_s, the likeliest first chosen, ascending.

    Of equal probabilities the earlier position wins.
    """
    above = np.flatnonzero(usable & (p_api > tau_s))
    best = above[np.argsort(-p_api[above], kind="stable")[:k]]
    return np.sort(best)


def _sample_batch(
    model: LanguageModel,
    tool: ToolName,
    prompt: Prompt,
    texts: Sequence[Text],
    encoded: Sequence[Pieces],
    method: ToolMethod,
    seed: int,
) -> list[SampledText]:
    tree = Tree(model, prompt, [pieces.ids for pieces in encoded])
    p_api = tree.positions()
    chosen, discarded = [], []
    for text, pieces, p in zip(texts, encoded, p_api, strict=True):
        if not np.isfinite(p).all():
            raise NonFiniteError("p(<API>)", text.text_id, tool, int(np.flatnonzero(~np.isfinite(p))[0]))
        usable = pieces.starts >= 0
        # Without a BOS the model says nothing about a text's first token alone: no loss, so no call can be
        # kept.
        unscorable = bool(usable[0] and not model.markers.bos and p[0] > method.tau_s)
        usable[0] &= bool(model.markers.bos)
        chosen.append(select_positions(p, usable, method.tau_s, method.k))
        discarded.append(Counter({"position_not_scorable": 1} if unscorable else {}))
    row = np.repeat(np.arange(len(texts)), [len(positions) for positions in chosen])
    position = np.concatenate(chosen)
    calls: list[Counter[tuple[int, str]]] = [Counter() for _ in texts]
    draws: list[dict[int, list[tuple[int, ...]]]] = [{int(i): [] for i in positions} for positions in chosen]
    if len(row):
        names = [texts[int(r)].text_id for r in row]
        keys = [
            stream_keys(seed, name, tool, int(i), method.m) for name, i in zip(names, position, strict=True)
        ]
        drawn = grow(tree, tool, row, position, np.stack(keys), method.max_call_tokens, names)
        for index, call in enumerate(_read(model, tool, drawn)):
            r, i = row[index // method.m], int(position[index // method.m])
            draws[r][i].append(drawn[index])
            if isinstance(call, Malformed):
                discarded[r][call.reason] += 1
            else:
                calls[r][i, call] += 1
    return [
        SampledText(
            text,
            tool,
            positions=len(chosen[r]),
            draws=len(chosen[r]) * method.m,
            candidates=tuple(
                Candidate(tool, int(encoded[r].starts[i]), i, float(p_api[r][i]), call, count)
                for (i, call), count in calls[r].items()
            ),
            discarded=dict(discarded[r]),
            work=_work(tool, tree, prompt, r, draws[r]),
        )
        for r, text in enumerate(texts)
    ]


def _work(
    tool: ToolName, tree: Tree, prompt: Prompt, row: int, draws: Mapping[int, Sequence[tuple[int, ...]]]
) -> tuple[Work, ...]:
    """The two phases of the text in a row, given its draws by position."""
    api = len(tree.model.markers.api)
    layout = Layout(prompt.length, int(tree.lengths[row]), len(prompt.suffix), api)
    decoded = tree.spent["decode"][row] if "decode" in tree.spent else Cost()
    return (
        Work(tool, "positions", least_positions(layout), tree.spent["positions"][row]),
        Work(tool, "decode", least_decode(layout, draws), decoded),
    )


def _read(model: LanguageModel, tool: ToolName, drawn: Sequence[tuple[int, ...]]) -> list[str | Malformed]:
    """The input of each draw's call, or why it is none. Equal draws are read once."""
    distinct = list(dict.fromkeys(drawn))
    read: dict[tuple[int, ...], str | Malformed] = {}
    special = set(model.tokenizer.all_special_ids)
    for ids, text in zip(distinct, texts_of(model.tokenizer, distinct), strict=True):
        read[ids] = Malformed("special_token") if ids[-1] in special else parse_call(text, tool)
    return [read[ids] for ids in drawn]
