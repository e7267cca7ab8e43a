"""The work that texts are expected to take: planning.forecast, for all tools of a text and real prompts.

In: a tokenizer and the method's prompts, the length of a text, the tools it was selected for, assumptions.
Out: `Cost`s by tool and phase, as the rows of a run have them. Averages of what a text brings are applied
to each text at its own length. No model, no weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.cost import Expected, forecast
from pipeline.base.records import Cost, Phase
from pipeline.planning.assumptions import Assumptions, Habit, Overhead
from pipeline.syntax.prompts import load_prompt
from pipeline.syntax.tokenizer import CallTokens, tokenize_continuations
from tools_service.tools.contract import ToolName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Costs = dict[tuple[ToolName | None, Phase], Cost]
"""As records.Work: no tool for L_i(empty), which all tools of a text share."""

WINDOW = 5  # tokens that a loss looks at (filtering.WEIGHTS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What stands around the texts, in tokens of one tokenizer."""

    bos: int
    api: int
    prompts: Mapping[ToolName, tuple[int, int]]
    """Before the text, BOS included, and behind it."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, method: MethodConfig) -> Sizes:
        """PromptError or TokenizerError where annotating would raise them."""
        call_tokens = CallTokens.of(tokenizer)
        prompts: dict[ToolName, tuple[int, int]] = {}
        for tool in method.tools:
            template = load_prompt(tool, method.prompts)
            before = tokenizer(template.prefix, add_special_tokens=False, split_special_tokens=True).input_ids
            [behind] = tokenize_continuations(tokenizer, [template.suffix])
            prompts[tool] = len(call_tokens.bos) + len(before), len(behind.ids)
        return Sizes(len(call_tokens.bos), len(call_tokens.api), prompts)

    def room(self, tool: ToolName, max_positions: int, max_call_tokens: int) -> int:
        """Most tokens a text may have, as LanguageModel.room says."""
        return max(0, (max_positions - sum(self.prompts[tool]) - self.api - max_call_tokens) // 2)


def foresee(
    n: int,
    selected: Collection[ToolName],
    texts: float,
    sizes: Sizes,
    method: MethodConfig,
    assumed: Assumptions,
) -> Costs:
    """Work for so many texts of `n` tokens under the tools they were selected for, overheads included."""
    wanted = {tool: expected(n, tool, sizes, method.of(tool), assumed.tools[tool]) for tool in selected}
    costs: Costs = {
        (tool, phase): cost
        for tool, one in wanted.items()
        for phase, cost in forecast(one, texts).items()
        if phase != "empty"
    }
    if wanted:
        furthest = max(wanted.values(), key=lambda one: one.reach)
        together = replace(
            furthest,
            calls=sum(one.calls for one in wanted.values()),
            targets=max(one.targets for one in wanted.values()),
        )
        costs[None, "empty"] = forecast(together, texts)["empty"]
    return {key: _run(cost, assumed.overheads.get(key[1], Overhead())) for key, cost in costs.items()}


def expected(n: int, tool: ToolName, sizes: Sizes, method: ToolMethod, habit: Habit) -> Expected:
    """What is expected of a text of `n` tokens under one tool."""
    prompt, suffix = sizes.prompts[tool]
    positions = min(habit.fill * method.k, n)
    reach = min(n, habit.reach * n + WINDOW)
    return Expected(
        prompt=prompt,
        n=n,
        suffix=suffix,
        api=sizes.api,
        positions=positions,
        draws=method.m,
        draw=habit.step + 1,
        calls=positions * method.m * habit.scored,
        plus=sizes.bos + habit.plus,
        call=sizes.bos + habit.call,
        reach=reach,
        targets=min(habit.targets, reach),
        close=habit.close,
    )


def _run(least: Cost, overhead: Overhead) -> Cost:
    tokens = round(least.tokens * overhead.tokens)
    return Cost(
        tokens,
        round(tokens * overhead.padding),
        round(least.attention_pairs * overhead.attention_pairs),
        least.logits,
    )
