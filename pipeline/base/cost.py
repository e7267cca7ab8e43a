"""The cost model: the least work the exact method asks of M, and what work is in FLOPs (paper section 2).

In: the sizes of a text and what came out of it, or expected sizes before anything has run. Out: `Cost`s, in
tokens, pairs of tokens that attention compares, and rows of logits; a model's FLOPs for them. *Least* means:
every distinct context that the method asks about is run once, whatever it takes to share it, nothing is
padded, and a token is compared with no token it does not see. The prompt's keys and values, once per tool
and model, are not a text's. Nothing here looks at the engine's own counters, and nothing needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.records import Cost, Phase
from tools_service.base.settings import Frozen


def span(depth: int, tokens: int, logits: int = 0) -> Cost:
    """Consecutive tokens of one context, the first with `depth` tokens before it; a token sees itself too."""
    return Cost(tokens, attention_pairs=tokens * depth + tokens * (tokens + 1) // 2, logits=logits)


class Trie:
    """Distinct contexts: a token counts once, however many sequences begin alike up to it."""

    def __init__(self, depth: int = 0) -> None:
        """`depth` tokens stand before all sequences and cost nothing here."""
        self._depth = depth
        self._nodes: dict[tuple[int, int], int] = {}  # (node, token) → node; the root is 0

    def add(self, sequence: Iterable[int]) -> Cost:
        """The cost of what no earlier sequence had; its logits are not counted."""
        node, known, size = 0, 0, 0
        for token in sequence:
            size += 1
            before = len(self._nodes)
            node = self._nodes.setdefault((node, token), before + 1)
            known += len(self._nodes) == before
        return span(self._depth + known, size - known)


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Tokens of a text's context when calls are sampled: prompt, the text's n, suffix, the text again; and of
    ``<API>``."""

    prompt: int
    n: int
    suffix: int
    api: int

    def depth(self, position: int) -> int:
        """Tokens before ``<API>`` at token `position` of the text, from 0."""
        return self.prompt + self.n + self.suffix + position


def lower_bound_positions(layout: PromptLayout) -> Cost:
    """p(<API>) at every position: the context once, without the text's last token, and each further token of
    ``<API>`` behind every position."""
    cost = span(layout.prompt, 2 * layout.n + layout.suffix - 1, layout.n)
    for further in range(layout.api - 1):
        cost += span(layout.depth(further), layout.n, layout.n)
    return cost


def lower_bound_decode(layout: PromptLayout, draws: Mapping[int, Sequence[Sequence[int]]]) -> Cost:
    """The draws [tokens] at each chosen position: the last token of ``<API>`` once a position (those before
    it have been run for p(<API>)), then every distinct beginning of a draw that another token was drawn
    after."""
    cost = Cost()
    for position, drawn in draws.items():
        start = layout.depth(position) + layout.api - 1
        begun = Trie(start + 1)
        nodes = sum((begun.add(draw[:-1]) for draw in drawn), Cost())
        cost += span(start, 1, 1) + nodes + Cost(logits=nodes.tokens)
    return cost


def lower_bound_scoring(sequences: Sequence[Sequence[int]], targets: Sequence[int]) -> list[Cost]:
    """What each sequence z + x adds to those before it of the same text: up to its last token, which is only
    predicted; `targets` are the numbers of tokens to predict in each."""
    begun = Trie()
    pairs = zip(sequences, targets, strict=True)
    return [begun.add(sequence[:-1]) + Cost(logits=wanted) for sequence, wanted in pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a text is expected to bring under one tool, on average. Sizes are in tokens."""

    prompt: float
    n: float
    suffix: float
    api: float = 1
    positions: float
    """Size of I."""
    draws: float
    """Draws at each position, m."""
    draw: float
    """Length of a draw, the token that closes it included."""
    distinct: float = 1.0
    """Distinct beginnings of a position's draws, as a share of all their beginnings."""
    calls: float
    """Distinct (c, r) of a text that are scored."""
    plus: float
    """Length of e(c, r), BOS included."""
    call: float
    """Length of e(c), BOS included."""
    shared: float = 0
    """Length of the beginning that the prefixes of a text have in common."""
    reach: float
    """Tokens of x up to the last that a loss needs."""
    targets: float = 5
    """Tokens of x that a loss needs."""
    close: float = 1.0
    """Share of the calls whose L_i(e(c)) is needed."""


def forecast(expected: Expected, texts: float = 1) -> dict[Phase, Cost]:
    """The least work for so many such texts, to whole tokens. An average of products is taken for the product
    of averages, so texts of very unequal length cost more than this says."""
    e = expected
    text = e.prompt + e.n + e.suffix
    drawn = e.positions * e.draws * max(0.0, e.draw - 1) * e.distinct
    middle = text + (e.n - 1) / 2 + e.api  # what the last token of <API> sees at an average position
    further = (e.api - 1) * e.n
    before = _pairs(e.prompt, 2 * e.n + e.suffix - 1)
    scored = {"empty": (min(1.0, e.calls), 0.0, 0.0), "plus": (e.calls, e.plus, e.shared)}
    scored["call"] = (e.calls * e.close, e.call, e.shared)
    costs: dict[Phase, Cost] = {
        "positions": _cost(
            texts,
            2 * e.n + e.suffix - 1 + further,
            before + further * (middle - e.api / 2),
            e.api * e.n,
        ),
        "decode": _cost(
            texts,
            e.positions + drawn,
            e.positions * middle + drawn * (middle + e.draw / 2),
            e.positions + drawn,
        ),
    }
    for phase, (times, prefix, known) in scored.items():
        size = max(0.0, prefix + e.reach - 1 - known)
        costs[phase] = _cost(texts, times * size, times * _pairs(known, size), times * e.targets)  # type: ignore[index]
    return costs


def _pairs(depth: float, tokens: float) -> float:
    return tokens * depth + tokens * (tokens + 1) / 2


def _cost(texts: float, tokens: float, seen: float, logits: float) -> Cost:
    return Cost(round(texts * tokens), attention_pairs=round(texts * seen), logits=round(texts * logits))


class ModelShape(Frozen):
    """What a model's FLOPs depend on. A multiplication with an addition is two; norms and the like are left
    out."""

    parameters: int
    """Weights of the matrices that every token goes through: no embeddings, no output head. Of a mixture of
    experts all are counted."""
    layers: int
    heads: int
    """Of the queries."""
    head_size: int
    hidden: int
    vocabulary: int
    """Rows of the output head."""

    def flops(self, cost: Cost) -> int:
        """Linear layers for every token fed, attention for every pair, the head for every row of logits."""
        linear = 2 * self.parameters * (cost.tokens + cost.padding)
        attention = 4 * self.layers * self.heads * self.head_size * cost.attention_pairs
        return linear + attention + 2 * self.hidden * self.vocabulary * cost.logits

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Of a transformers causal LM; its weights may be on the meta device."""
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        tables = [
            part for part in model.modules() if part is head or type(part).__name__.endswith("Embedding")
        ]
        apart = {id(weight) for table in tables for weight in table.parameters(recurse=False)}
        matrices = [weight for weight in model.parameters() if weight.dim() > 1 and id(weight) not in apart]
        heads = config.num_attention_heads
        return cls(
            parameters=sum(weight.numel() for weight in matrices),
            layers=config.num_hidden_layers,
            heads=heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
        )
