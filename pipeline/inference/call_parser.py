"""Calls at inference (step 7): the text of one while it is being written, the tokens that would begin one.

In: the text that the model has written after <API> so far. Out: what it amounts to. Unlike a draw of step
2, which ends with </API>, a call at inference is complete at its arrow: the result is the tool's to give.
Used by decoding.py and, for the probability of <API>, by evaluation/perplexity.py. Knows no model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.syntax.calls import API, END, Malformed, parse_call
from pipeline.syntax.tokenizer import CallTokens
from tools_service.tools.contract import TOOL_NAMES, ToolName

ARROW_HEAD = "->"  # the arrow without its spaces, which a tokenizer may put into other tokens


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call that got its result. `position` is the offset in the generated text before which it stands."""

    tool: ToolName
    input: str
    result: str
    position: int


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A call that was begun and taken back: what was written after <API>, and why it came to nothing."""

    written: str
    reason: str


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call as far as its arrow: what the tool is asked."""

    tool: ToolName
    input: str


def read_call(written: str, tools_off: Collection[ToolName] = ()) -> PendingCall | Malformed | None:
    """What the text after <API> amounts to: a call up to its arrow, no call any more, or not decided yet."""
    head, arrow, _ = written.partition(ARROW_HEAD)
    tool = next((tool for tool in TOOL_NAMES if head.startswith(f"{tool}(")), None)
    if tool is None:
        begun = not arrow and any(f"{tool}(".startswith(head) for tool in TOOL_NAMES)
        return None if begun else Malformed("no_tool")
    if tool in tools_off:
        return Malformed("tool_off")
    if END in head:
        return Malformed("no_arrow")
    if arrow:
        asked = parse_call(head.rstrip() + END, tool)
        return asked if isinstance(asked, Malformed) else PendingCall(tool, asked)
    # The rest of an arrow or of a character may still be on its way.
    verdict = parse_call(head.rstrip("\ufffd -"), tool)
    return verdict if isinstance(verdict, Malformed) and verdict.reason != "too_long" else None


def names_switched_off(written: str, tools_off: Collection[ToolName]) -> bool:
    """Whether the text after <API> can only become the call of a tool that is switched off."""

    def leads_to(tool: ToolName) -> bool:
        return f"{tool}(".startswith(written) or written.startswith(f"{tool}(")

    return any(map(leads_to, tools_off)) and not any(
        leads_to(tool) for tool in TOOL_NAMES if tool not in tools_off
    )


class ApiTokenMask:
    """Which of V ids complete `` [`` in a text: those of <API>, and any other token that spells the same.

    To set the probability of <API> to 0 is to bar all of them: a model kept from one spelling must not slip
    into another. After a token that ends with a space a bare ``[`` is one of them.
    """

    def __init__(self, call_tokens: CallTokens, device: torch.device) -> None:
        anywhere = torch.tensor([piece.endswith(API) for piece in call_tokens.token_strings])
        bracket = torch.tensor([piece == API[1:] for piece in call_tokens.token_strings])
        self._masks = torch.stack([anywhere, anywhere | bracket]).to(device)  # [2, V]
        self._space = (
            torch.tensor([piece.endswith(API[0]) for piece in call_tokens.token_strings]).long().to(device)
        )

    def after(self, tokens: Tensor) -> Tensor:
        """[…, V] bool: the ids that would complete <API> right after each of `tokens` […]."""
        return self._masks[self._space[tokens]]
