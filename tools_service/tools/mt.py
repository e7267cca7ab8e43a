"""Machine translation (paper section 3, Appendix A): ``MT(text)`` answers with the text in English.

In: a text in any language that fastText and the checkpoint know. Out: its translation by an NLLB
model (any checkpoint of that architecture), or the reason for none: it is English, its language is
not certain or not known, or it is too long. No text is cut, because half a sentence has another
translation. Texts of several languages share a batch: the source language is a token of each text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tools_service.config import MTConfig, ToolsConfig
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.languages import ENGLISH, flores_code, identify_language
from tools_service.tools.sanitize import MAX_CHARACTERS_PER_TOKEN
from tools_service.tools.seq2seq import Ids, Seq2Seq, Seq2SeqError, load_seq2seq, require_model, well_formed

# A translation of more than three times the tokens of its source repeats itself. Limits are
# multiples of 64, because only texts with the same limit are translated together.
_LIMIT_PER_TOKEN, _LIMIT_STEP = 3, 64


class MT:
    """`MT(text)`: a list of texts to a list of English texts or reasons."""

    name = "MT"
    Config = MTConfig

    @staticmethod
    def check(spec: ToolSpec, settings: MTConfig, _tools: ToolsConfig) -> None:
        """Raise ToolUnavailableError if there is no such checkpoint."""
        require_model(settings.model, f"tools.{spec.section}.model")

    @staticmethod
    def reads(settings: MTConfig) -> list[str]:
        """The checkpoint."""
        return [settings.model]

    def __init__(self, config: MTConfig) -> None:
        """Load the checkpoint; Seq2SeqError if that fails or it cannot write English."""
        model, self._tokenizer = load_seq2seq(config, "tools.mt")
        self._token_ids: dict[str, int] = self._tokenizer.get_vocab()  # languages among them
        require_english(self._tokenizer, config.model)
        self._translator = Seq2Seq(
            model,
            self._tokenizer,
            max_batch_tokens=config.max_batch_tokens,
            beams=config.beams,
            first_token=self._token_ids[ENGLISH],
        )
        self._min_confidence = config.min_confidence
        self._max_tokens = min(config.max_input_tokens, self._translator.max_positions or 2**31)
        self._tokenizer_lock = threading.Lock()  # the source language is a state of the tokenizer

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Translate every text that can be translated."""
        prepared = [self._encode(well_formed(call.text).strip()) for call in inputs]
        sources = [item for item in prepared if not isinstance(item, str)]
        limits = [_LIMIT_STEP * (1 + _LIMIT_PER_TOKEN * len(source) // _LIMIT_STEP) for source in sources]
        translations = iter(self._translator.generate([[source] for source in sources], limits))
        return [
            ToolResult(reason=item) if isinstance(item, str) else _result(next(translations))
            for item in prepared
        ]

    def _encode(self, text: str) -> Ids | str:
        """Return the model's input, or the reason why there is no translation."""
        if not text:
            return "empty text"
        if len(text) > MAX_CHARACTERS_PER_TOKEN * self._max_tokens:
            return "text too long"
        label, confidence = identify_language(text)
        language = flores_code(label, text)
        if confidence < self._min_confidence:
            return "language not certain"
        if language == ENGLISH:
            return "already English"
        if language not in self._token_ids:
            return "language not known to the model"
        with self._tokenizer_lock:
            self._tokenizer.src_lang = language
            # Special tokens that are written out in the text are text.
            ids: Ids = self._tokenizer(text, split_special_tokens=True, verbose=False).input_ids
        return ids if len(ids) <= self._max_tokens else "text too long"


def require_english(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Raise Seq2SeqError unless the tokenizer of `model` knows languages, and English among them."""
    if ENGLISH not in tokenizer.get_vocab() or not hasattr(tokenizer, "src_lang"):
        raise Seq2SeqError(
            f"tools.mt.model {model!r}: its tokenizer has no language {ENGLISH}; "
            "choose a checkpoint of NLLB's architecture"
        )


def _result(text: str | None) -> ToolResult:
    if text is None:
        return ToolResult(reason="translation too long")
    return ToolResult(text) if text else ToolResult(reason="empty translation")
