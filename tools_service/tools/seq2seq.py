"""An encoder-decoder of transformers behind QA and MT: token ids in, finished texts out (paper Appendix A).

An input is one or more parts. Every part is encoded by itself, and the decoder attends to all of them at
once: with one part that is plain generation, with several it is fusion-in-decoder (Izacard and Grave, arXiv
2007.01282). Inputs are grouped by length under a budget of tokens; padding stands behind and is masked, so
that an output does not depend on what else is in the list. It knows nothing of languages, questions or Ray.

Shapes: B rows, T encoded tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging as transformers_logging

from tools_service.base.errors import ConfigurationError
from tools_service.config import MTConfig, QAConfig

Ids = list[int]

# What is kept of a checkpoint's own settings for generation. The others (sampling, lengths, penalties) were
# meant for another task or would make the output depend on more than the input.
_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id")


class Seq2SeqError(ConfigurationError):
    """A checkpoint that cannot be loaded, or not be used as the configuration says."""


class Seq2Seq:
    """One encoder-decoder with its tokenizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_tokens: int,
        beams: int = 1,
        first_token: int | None = None,
    ) -> None:
        """`first_token` begins every output; None leaves that to the checkpoint."""
        self.model, self.tokenizer = model, tokenizer
        self.model.train(False)
        kept = {name: getattr(model.generation_config, name) for name in _TOKENS}
        if first_token is not None:
            kept["forced_bos_token_id"] = first_token
        ends = kept["eos_token_id"]
        self._ends = frozenset([ends] if isinstance(ends, int) else ends)
        settings: Any = GenerationConfig
        self.model.generation_config = settings(**kept)
        self._max_batch_tokens, self._beams = max_batch_tokens, beams
        self._pad: int = kept["pad_token_id"]

    @property
    def max_positions(self) -> int | None:
        """The longest part the encoder has positions for; None where positions are relative."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def generate(self, inputs: Sequence[Sequence[Ids]], limits: Sequence[int]) -> list[str | None]:
        """The text generated for each input; None if it does not end within its limit of tokens.

        Greedy, or a beam search. Special tokens are left out of the texts.
        """
        return [self._text(ids) for ids in self.generate_ids(inputs, limits)]

    @torch.inference_mode()
    def generate_ids(self, inputs: Sequence[Sequence[Ids]], limits: Sequence[int]) -> list[Ids]:
        """The ids generated for each input: up to its end token, which is the last, or to its limit."""
        outputs: list[Ids] = [[]] * len(inputs)
        for limit in sorted(set(limits)):  # a beam search may end differently with more room
            chosen = [index for index, own in enumerate(limits) if own == limit]
            lengths = [sum(map(len, inputs[index])) for index in chosen]
            for rows in by_length(lengths, self._max_batch_tokens):
                batch = [chosen[row] for row in rows]
                states = self._encode([part for index in batch for part in inputs[index]])
                fused = [torch.cat([next(states) for _ in inputs[index]]) for index in batch]
                for index, ids in zip(batch, self._decode(fused, limit), strict=True):
                    outputs[index] = ids
        return outputs

    def _encode(self, parts: Sequence[Ids]) -> Iterator[torch.Tensor]:
        """The encoder's states of each part, [its tokens, D]."""
        states: list[torch.Tensor] = [torch.empty(0)] * len(parts)
        encoder: Any = self.model.get_encoder()
        for batch in by_length([len(part) for part in parts], self._max_batch_tokens):
            rows = [torch.tensor(parts[index], device=self.model.device) for index in batch]
            ids = pad_sequence(rows, batch_first=True, padding_value=self._pad)
            found = encoder(input_ids=ids, attention_mask=_mask(rows)).last_hidden_state
            for index, row in zip(batch, found, strict=True):
                states[index] = row[: len(parts[index])]
        return iter(states)

    def _decode(self, states: Sequence[torch.Tensor], limit: int) -> list[Ids]:
        """What the decoder writes to each of `states` [T, D]."""
        model: Any = self.model
        found = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=pad_sequence(list(states), batch_first=True)),
            attention_mask=_mask(states),
            do_sample=False,
            num_beams=self._beams,
            max_new_tokens=limit,
        )
        outputs = []
        for _start, *ids in found.tolist():  # BART and NLLB start with the token they end with
            end = next((at for at, token in enumerate(ids) if token in self._ends), limit)
            outputs.append(ids[: end + 1])
        return outputs

    def _text(self, ids: Ids) -> str | None:
        if not ids or ids[-1] not in self._ends:
            return None
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def load_seq2seq(config: QAConfig | MTConfig, field: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that `config` names; safetensors only, no code from the folder.

    Seq2SeqError names `field` (tools.qa, say) if they cannot be had.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
        loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(
            config.model,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Seq2SeqError(f"{field}.model {config.model!r}: cannot load it: {error}") from error
    model, report = loaded
    if absent := sorted(report["missing_keys"]):
        raise Seq2SeqError(f"{field}.model {config.model!r}: no weights for {', '.join(absent[:3])}")
    return model.to(device), tokenizer


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first; several in one stay under `budget`, padded."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        rows = max(1, budget // max(1, lengths[order[0]]))
        yield order[:rows]
        order = order[rows:]


def well_formed(text: str) -> str:
    """`text` with question marks for halves of surrogate pairs, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _mask(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, longest]: 1 where a row of [its length, …] has something, 0 behind it."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return (torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]).long()
