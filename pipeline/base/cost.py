"""The cost model: a lower bound on the work of the exact method, and its FLOPs (paper section 2).

In: the sizes of a text, its draws, its scored sequences. Out: `Cost`s in tokens, attention pairs and rows
of logits. The bound runs every distinct context once, without padding and without masked pairs; it leaves
out the prompt's keys and values, which are computed once per tool and model. Counters of the engine are not
used, and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from pipeline.base.records import Cost
from tools_service.base.settings import Frozen


def causal_cost(context: int, tokens: int, logits: int = 0) -> Cost:
    """`tokens` consecutive tokens after `context` others; each attends to all before it and to itself."""
    return Cost(tokens, attention_pairs=tokens * context + tokens * (tokens + 1) // 2, logits=logits)


def shared_lengths(sequences: Sequence[Sequence[int]]) -> list[int]:
    """For each sequence the length of the longest prefix that an earlier one has, too."""
    as_tuples = [tuple(ids) for ids in sequences]
    order = sorted(range(len(sequences)), key=as_tuples.__getitem__)
    # In sorted order the longest prefix is shared with a neighbour. `shared[p]` is the length that the
    # places `p` and `left[p]` share; one place more than sequences closes the list.
    shared = [0, *(_common_length(sequences[a], sequences[b]) for a, b in pairwise(order)), 0]
    left, right = [p - 1 for p in range(len(shared))], [p + 1 for p in range(len(shared))]
    place = {index: p for p, index in enumerate(order)}
    lengths = [0] * len(sequences)
    # The last sequence has all others before it. Then it leaves the list, and the next one has.
    for index in reversed(range(len(sequences))):
        p = place[index]
        after = right[p]
        lengths[index] = max(shared[p], shared[after])
        shared[after] = min(shared[p], shared[after])
        left[after] = left[p]
        right[left[p]] = after
    return lengths


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Tokens of the parts when calls are sampled: prompt, text (n), suffix, the text again, ``<API>``.

    Without a prompt the suffix is BOS, if the tokenizer has one, and the text stands there once.
    """

    prompt: int
    n: int
    suffix: int
    api: int
    has_prompt: bool = True

    def context(self, position: int) -> int:
        """Tokens before ``<API>`` at token `position` of the text, counted from 0."""
        return self.prompt + self.has_prompt * self.n + self.suffix + position

    @property
    def first(self) -> int:
        """The first token of the text that follows another: 1 without a prompt and without BOS, else 0."""
        return 0 if self.context(0) else 1


def lower_bound_positions(layout: PromptLayout) -> Cost:
    """p(<API>) at every position: the context without the text's last token, and at every position all
    tokens of ``<API>`` but the last."""
    first = layout.first
    positions = layout.n - first
    # All tokens before the last position; those of a prompt before the text cost nothing here.
    cost = causal_cost(layout.prompt, layout.context(layout.n - 1) - layout.prompt, positions)
    for api_token in range(layout.api - 1):
        cost += causal_cost(layout.context(first + api_token), positions, positions)
    return cost


def lower_bound_decode(
    layout: PromptLayout,
    draws: Mapping[int, Sequence[Sequence[int]]],
    names: Mapping[int, Sequence[Sequence[int]]] = MappingProxyType({}),
) -> Cost:
    """The draws, as tokens, at each chosen position, and the beginnings of the tool's name that ran there
    for draws that are given it.

    The last token of ``<API>`` runs once per position; the earlier ones already ran for p(<API>). Then every
    distinct prefix of a draw runs that another token was drawn after, and every beginning of the name.
    """
    tokens = pairs = 0
    for position, position_draws in draws.items():
        context = layout.context(position) + layout.api
        followed = {tuple(draw[:-1]) for draw in position_draws}
        followed.update(map(tuple, names.get(position, ())))
        prefixes = {ids[:size] for ids in followed for size in range(1, len(ids) + 1)}
        tokens += 1 + len(prefixes)
        pairs += (1 + len(prefixes)) * context + sum(map(len, prefixes))
    return Cost(tokens, attention_pairs=pairs, logits=tokens)


def lower_bound_scoring(sequences: Sequence[Sequence[int]], targets: Sequence[int]) -> list[Cost]:
    """What each sequence z + x adds to the earlier ones of the same text, without its last token, which is
    only predicted. `targets` has the number of tokens to predict in each."""
    fed = [sequence[:-1] for sequence in sequences]
    return [
        causal_cost(shared, len(ids) - shared, count)
        for ids, shared, count in zip(fed, shared_lengths(fed), targets, strict=True)
    ]


class ModelShape(Frozen):
    """The sizes that a model's FLOPs depend on. A multiply-add counts as two; norms and the like as none."""

    parameters: int
    """Weights of the matrices that every token passes, without embeddings and output head. All experts of a
    mixture are counted."""
    layers: int
    heads: int  # query heads
    head_size: int
    hidden: int
    vocabulary: int  # rows of the output head

    def flops(self, cost: Cost) -> int:
        """Linear layers per token, attention per pair, the output head per row of logits.

        Layers count whole, although the engine's last one leaves tokens out (docs/decisions/0060).
        """
        linear = 2 * self.parameters * (cost.tokens + cost.padding)
        attention = 4 * self.layers * self.heads * self.head_size * cost.attention_pairs
        head = 2 * self.hidden * self.vocabulary * cost.logits
        return linear + attention + head

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Of a transformers causal LM; its weights may be on the meta device."""
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        excluded: set[int] = set()
        for module in model.modules():
            if module is head or type(module).__name__.endswith("Embedding"):
                excluded.update(map(id, module.parameters(recurse=False)))
        matrices = [
            weight for weight in model.parameters() if weight.dim() > 1 and id(weight) not in excluded
        ]
        heads = config.num_attention_heads
        return cls(
            parameters=sum(weight.numel() for weight in matrices),
            layers=config.num_hidden_layers,
            heads=heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
        )
