"""A batch of token sequences over one KV cache, for decoding one token per row and step (step 7).

In: the engine and token ids. Out: the logits after each row's last token. Prompts are left-padded.
A row can roll back its latest tokens: their cache slots are masked and their position ids used
again, so later logits are the same as without these tokens. decoding.py chooses the tokens.

Shapes: B rows, Q tokens fed now, T cache slots (including padding and rolled back tokens), V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.base.records import Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel


class DecodeBatch:
    """B token sequences. `logits` [B, V], float32, follow the last token of each row."""

    logits: Tensor

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        """Runs the prompts. Raises ValueError if there is none, or one without a token."""
        if not prompts or not all(prompts):
            raise ValueError("every row needs a prompt of at least one token")
        self._model = model
        self._cache = KVCache()
        self._lengths = [len(prompt) for prompt in prompts]
        longest = max(self._lengths)
        input_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        slots = torch.arange(longest)
        # Which slots hold a token of the row, and not padding or a token that was rolled back.
        self._token_mask = slots >= longest - torch.tensor(self._lengths)[:, None]  # [B, T]
        position_ids = (self._token_mask.cumsum(-1) - 1).clamp(min=0)
        attention_mask = self._token_mask[:, None, :] & (slots[:, None] >= slots)
        self._forward(input_ids, position_ids, attention_mask, phase="prompt", tokens=self._lengths)

    def length(self, row: int) -> int:
        """Tokens of `row`, without padding and tokens that were rolled back."""
        return self._lengths[row]

    def step(self, tokens: Sequence[int]) -> None:
        """Appends one token to every row."""
        position_ids = torch.tensor(self._lengths)[:, None]
        self._token_mask = pad(self._token_mask, (0, 1), value=True)
        self._lengths = [length + 1 for length in self._lengths]
        input_ids = torch.tensor(tokens)[:, None]
        attention_mask = self._token_mask[:, None, :]
        self._forward(input_ids, position_ids, attention_mask, phase="decode", tokens=[1] * len(tokens))

    def rollback(self, row: int, count: int) -> None:
        """Removes the last `count` tokens of `row`; `logits` do not change.

        Raises ValueError if the last `count` slots of the row do not all hold tokens, or no token
        remains.
        """
        last_slots = self._token_mask[row, self._token_mask.shape[1] - count :]
        if not 0 <= count < self._lengths[row] or not bool(last_slots.all()):
            raise ValueError(f"row {row} cannot roll back {count} of its {self._lengths[row]} tokens")
        last_slots[:] = False
        self._lengths[row] -= count

    def keep(self, rows: Sequence[int]) -> None:
        """Continues with `rows` only, in this order; drops the slots that none of them needs."""
        self._lengths = [self._lengths[row] for row in rows]
        longest = max(self._lengths)
        row_index = torch.tensor(rows)
        token_mask = self._token_mask[row_index]
        # A stable sort puts the unused slots of each row first and keeps the order of its tokens.
        slots = token_mask.long().argsort(dim=1, stable=True)[:, -longest:]  # [B, T]
        self._token_mask = token_mask.gather(1, slots)
        row_index, slots = row_index.to(self._model.device), slots.to(self._model.device)
        capacity = longest + longest // 4
        self._cache = KVCache.gathered([(self._cache, row_index, slots)], capacity)
        self.logits = self.logits[row_index]

    def _forward(self, *inputs: Tensor, phase: Phase, tokens: Sequence[int]) -> None:
        """Appends tokens and sets `logits`; `tokens` [B] counts the real ones of each row.

        `inputs` are input_ids [B, Q], position_ids [B, Q] and attention_mask [B, Q, T].
        """
        ids, positions, mask = (tensor.to(self._model.device) for tensor in inputs)
        hidden_states = self._model.forward(ids, positions, mask, self._cache, phase, tokens)
        # A copy, because the engine returns inference tensors and the decoder writes to the logits.
        self.logits = torch.cat(list(self._model.logits(hidden_states[:, -1]))).clone()
