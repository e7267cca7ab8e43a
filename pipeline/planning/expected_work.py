"""The work that annotating texts is expected to take, in closed form (paper section 2).

In: lengths of texts, the tools selected for them, prompt sizes, `Assumptions`. Out: `Cost`s by tool and
phase. The averages apply to each text at its own length, and an average of products is taken as the product
of the averages. Needs a tokenizer, no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.config import MethodConfig
from pipeline.base.cost import PromptLayout, lower_bound_positions
from pipeline.base.records import Cost, Phase
from pipeline.planning.assumptions import Assumptions, Overhead
from pipeline.syntax.tokenizer import CallTokens, tokenize_prompt
from tools_service.syntax.prompts import load_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextCounts = Counter[tuple[int, tuple[str, ...]]]  # texts by length in tokens and selected tools
WorkKey = tuple[str | None, Phase]  # no tool for L_i(empty), which all tools of a text share
LOSS_TOKENS = 5  # tokens with a weight in a loss (filtering.WEIGHTS)


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """Tokens of BOS, of ``<API>``, and of each tool's prompt before (with BOS) and after the text.

    Without prompts nothing stands before the text but BOS, which counts as the part after it.
    """

    bos: int
    api: int
    prompts: Mapping[str, tuple[int, int]]
    has_prompts: bool = True

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, method: MethodConfig) -> PromptSizes:
        """Raises PromptError and TokenizerError as annotating does."""
        call_tokens = CallTokens.of(tokenizer)
        bos, api = len(call_tokens.bos), len(call_tokens.api)
        if not method.use_prompts:
            return PromptSizes(bos, api, dict.fromkeys(method.tools, (0, bos)), has_prompts=False)
        prompts: dict[str, tuple[int, int]] = {}
        for tool in method.tools:
            template = load_prompt(tool, method.prompts, method.of(tool).prompt, method.tools)
            prefix, suffix = tokenize_prompt(tokenizer, template)
            prompts[tool] = len(prefix), len(suffix)
        return PromptSizes(bos, api, prompts)

    def max_text_tokens(self, tool: str, max_positions: int, max_call_tokens: int) -> int:
        """Longest text that fits beside the prompt, as LanguageModel.max_text_tokens."""
        room = max_positions - sum(self.prompts[tool]) - self.api - max_call_tokens
        return max(0, room // (1 + self.has_prompts))


def estimate_work(
    texts: TextCounts, scale: float, sizes: PromptSizes, method: MethodConfig, assumptions: Assumptions
) -> dict[WorkKey, Cost]:
    """Work for `scale` times these texts, the engine's overhead included."""
    work: defaultdict[WorkKey, Cost] = defaultdict(Cost)
    for (n, tools), number in texts.items():
        for key, amounts in _lower_bounds(n, tools, sizes, method, assumptions):
            # Round for all equal texts together: a single text may take less than half a token.
            tokens, pairs, logits = (round(scale * number * amount) for amount in amounts)
            overhead = assumptions.overheads.get(key[1], Overhead())
            tokens = round(tokens * overhead.tokens)
            padding = round(tokens * overhead.padding)
            work[key] += Cost(tokens, padding, round(pairs * overhead.attention_pairs), logits)
    return dict(work)


Amounts = tuple[float, float, float]  # tokens, attention pairs, rows of logits


def _lower_bounds(
    n: int, tools: tuple[str, ...], sizes: PromptSizes, method: MethodConfig, assumptions: Assumptions
) -> Iterator[tuple[WorkKey, Amounts]]:
    """The phases of one text of `n` tokens."""
    all_calls = max_reach = max_targets = 0.0
    for tool in tools:
        statistics, settings = assumptions.of_tool(tool), method.of(tool)
        prompt, suffix = sizes.prompts[tool]
        layout = PromptLayout(prompt, n, suffix, sizes.api, sizes.has_prompts)
        cost = lower_bound_positions(layout)
        yield (tool, "positions"), (cost.tokens, cost.attention_pairs, cost.logits)

        # The last token of <API> runs once at each position; it sees `context` on average.
        positions = min(statistics.positions * settings.k, n)
        draws = positions * settings.m
        drawn = draws * statistics.draw
        context = layout.context(0) + (n - 1) / 2 + sizes.api
        pairs = positions * context + drawn * (context + (statistics.draw + 1) / 2)
        yield (tool, "decode"), (positions + drawn, pairs, positions + drawn)

        # Scoring runs the text up to `reach`, where the last loss ends.
        calls = draws * statistics.scored
        reach = min(n, statistics.last_position * n + LOSS_TOKENS)
        targets = min(statistics.targets, reach)
        yield (tool, "plus"), _scoring(calls, sizes.bos + statistics.plus + reach, targets)
        needed = calls * statistics.needs_call
        yield (tool, "call"), _scoring(needed, sizes.bos + statistics.call + reach, targets)
        all_calls += calls
        max_reach, max_targets = max(max_reach, reach), max(max_targets, targets)
    if tools:
        yield (None, "empty"), _scoring(min(1.0, all_calls), max_reach, max_targets)


def _scoring(sequences: float, length: float, targets: float) -> Amounts:
    tokens = max(0.0, length - 1)  # the last token is predicted, not run
    return sequences * tokens, sequences * tokens * (tokens + 1) / 2, sequences * targets
