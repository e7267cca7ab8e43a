"""The encoder-decoder behind QA and MT (paper Appendix A): token ids in, finished texts out.

An input has one or more segments. Each segment is encoded alone, and the decoder attends to all of
them. One segment is plain generation; several are fusion-in-decoder (Izacard and Grave, arXiv
2007.01282). Inputs are batched by length under a token budget. Padding is masked, so that an output
does not depend on the rest of the list. It knows no languages, no questions and no Ray.

Shapes: B rows, T encoded tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from tools_service.base.batching import batch_by_length
from tools_service.base.checkpoints import load_model, load_tokenizer, resolve_device
from tools_service.base.errors import ConfigurationError
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.packed_linear import pack_linear_layers
from tools_service.config import MTConfig, QAConfig
from tools_service.contract.tool import ToolUnavailableError

Ids = list[int]

# The only generation settings of a checkpoint that are used. Others (sampling, lengths, penalties)
# were meant for another task, or would make an output depend on more than its input.
_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id")


class Seq2SeqError(ConfigurationError):
    """A checkpoint cannot be loaded, or not be used as the configuration says."""


class Seq2Seq:
    """An encoder-decoder with its tokenizer."""

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
        settings = {name: getattr(model.generation_config, name) for name in _TOKENS}
        if first_token is not None:
            settings["forced_bos_token_id"] = first_token
        generation_config: Any = GenerationConfig
        self.model.generation_config = generation_config(**settings)

        end_tokens = settings["eos_token_id"]
        self._end_tokens = frozenset([end_tokens] if isinstance(end_tokens, int) else end_tokens)
        self._pad: int = settings["pad_token_id"]
        self._max_batch_tokens, self._beams = max_batch_tokens, beams

    @property
    def max_positions(self) -> int | None:
        """The longest segment the encoder has positions for; None if positions are relative."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def generate(self, inputs: Sequence[Sequence[Ids]], limits: Sequence[int]) -> list[str | None]:
        """Return the text for each input; None if it has no end token within its limit of tokens."""
        return [self._decode_text(ids) for ids in self.generate_ids(inputs, limits)]

    @torch.inference_mode()
    def generate_ids(self, inputs: Sequence[Sequence[Ids]], limits: Sequence[int]) -> list[Ids]:
        """Return the ids for each input, up to and with its end token, or up to its limit."""
        outputs: list[Ids] = [[]] * len(inputs)
        for limit in sorted(set(limits)):  # more room may change the end of a beam search
            selected = [index for index, own_limit in enumerate(limits) if own_limit == limit]
            lengths = [sum(map(len, inputs[index])) for index in selected]
            for rows in batch_by_length(lengths, max_tokens=self._max_batch_tokens):
                batch = [selected[row] for row in rows]
                states = self._encode([segment for index in batch for segment in inputs[index]])
                fused = [torch.cat([next(states) for _ in inputs[index]]) for index in batch]
                for index, ids in zip(batch, self._decode(fused, limit), strict=True):
                    outputs[index] = ids
        return outputs

    def _encode(self, segments: Sequence[Ids]) -> Iterator[torch.Tensor]:
        """Return the encoder's states of each segment, [its tokens, D]."""
        states: list[torch.Tensor] = [torch.empty(0)] * len(segments)
        encoder: Any = self.model.get_encoder()
        lengths = [len(segment) for segment in segments]
        for batch in batch_by_length(lengths, max_tokens=self._max_batch_tokens):
            rows = [torch.tensor(segments[index]) for index in batch]
            padded = pad_sequence(rows, batch_first=True, padding_value=self._pad)  # [B, T]
            # Each copy to a GPU waits for it: one for the batch, not one for each row.
            ids, mask = (tensor.to(self.model.device) for tensor in (padded, _mask(rows)))
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, D]
            for index, row in zip(batch, hidden, strict=True):
                states[index] = row[: lengths[index]]
        return iter(states)

    def _decode(self, states: Sequence[torch.Tensor], limit: int) -> list[Ids]:
        """Return the ids that the decoder generates for each of `states` [T, D]."""
        model: Any = self.model
        hidden = pad_sequence(list(states), batch_first=True)  # [B, T, D]
        generated = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=_mask(states),
            do_sample=False,
            num_beams=self._beams,
            max_new_tokens=limit,
        )
        outputs = []
        for _start, *ids in generated.tolist():  # BART and NLLB start with their end token
            end = next((at for at, token in enumerate(ids) if token in self._end_tokens), limit)
            outputs.append(ids[: end + 1])
        return outputs

    def _decode_text(self, ids: Ids) -> str | None:
        if not ids or ids[-1] not in self._end_tokens:
            return None
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def require_model(model: str, field: str) -> None:
    """Raise ToolUnavailableError if `model` can only be a folder, and has no model."""
    if not may_be_hub_name(model) and not Path(model, "config.json").is_file():
        raise ToolUnavailableError(
            f"{field}: {model} is not a folder with a model; name one, or a model of the hub (owner/name)"
        )


def load_seq2seq(config: QAConfig | MTConfig, field: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and tokenizer of `config`. Seq2SeqError names the section `field`."""
    device = resolve_device(config.device, f"{field}.device", Seq2SeqError)
    tokenizer = load_tokenizer(config.model, f"{field}.model", Seq2SeqError)
    model = load_model(
        AutoModelForSeq2SeqLM, config.model, f"{field}.model", dtype=config.dtype, error=Seq2SeqError
    )
    model = model.to(device)
    pack_linear_layers(model)
    return model, tokenizer


def well_formed(text: str) -> str:
    """Return `text` with question marks for lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _mask(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return [B, longest]: 1 for the items of each row [its length, …], 0 for padding."""
    ones = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
    return pad_sequence(ones, batch_first=True)
