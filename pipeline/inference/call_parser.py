"""The calls of a generated text, and the tokens that can begin one (step 7).

`ApiTokenMask` also serves evaluation/perplexity.py. syntax/partial_call.py parses a call that the model is
writing. This module runs no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.syntax.tokenizer import CallTokens
from tools_service.syntax.calls import API


@dataclass(frozen=True, slots=True)
class CompletedCall:
    """A call with its result. It stands before the character `position` of the generated text."""

    tool: str
    input: str
    result: str
    position: int


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A call that was rolled back: the text written after <API>, and the reason.

    It stood before the character `position` of the generated text.
    """

    written: str
    reason: str
    position: int = 0


class ApiTokenMask:
    """The ids, of V, that complete `` [`` in a text: the end of <API>, in this or another spelling.

    Disabling calls gives all of them probability 0; otherwise the model could write <API> in
    another spelling. A bare ``[`` completes <API> after a token that ends with a space.
    """

    def __init__(self, call_tokens: CallTokens, device: torch.device) -> None:
        strings = call_tokens.token_strings
        ends_with_api = torch.tensor([string.endswith(API) for string in strings])
        is_bracket = torch.tensor([string == API[1:] for string in strings])
        ends_with_space = torch.tensor([string.endswith(API[0]) for string in strings])
        self._masks = torch.stack([ends_with_api, ends_with_api | is_bracket]).to(device)  # [2, V]
        self._mask_index = ends_with_space.long().to(device)  # [V]

    def after(self, tokens: Tensor) -> Tensor:
        """[…, V] bool: the ids that would complete <API> right after each of `tokens` […]."""
        return self._masks[self._mask_index[tokens]]
