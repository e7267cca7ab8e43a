"""Machine translation (paper section 3, Appendix A): ``MT(text)`` answers with the text in English.

In: a text in any language that fastText knows and the checkpoint was trained on. Out: its translation by an
NLLB model (any checkpoint of that architecture), or why there is none: it is English already, its language
is not certain or not known, it is too long. Nothing is cut: half a sentence translates to something else.

Texts of several languages travel in one batch: the source language is a token of each text's own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tools_service.config import MTConfig
from tools_service.tools.contract import ToolInput, ToolResult
from tools_service.tools.languages import ENGLISH, flores_code, identify_language
from tools_service.tools.seq2seq import Ids, Seq2Seq, Seq2SeqError, load_seq2seq, well_formed

# No tokenizer makes fewer tokens than this of a text on average, so longer texts need not be read.
_CHARACTERS_PER_TOKEN = 32

# A translation that is still going on after three times the tokens of its source repeats itself. Limits are
# multiples of 64: only texts with the same limit are translated together.
_LIMIT_PER_TOKEN, _LIMIT_STEP = 3, 64


class NoTranslationError(ValueError):
    """A text is not translated; the message is the reason."""


class MT:
    """`MT(text)`: a list of texts to a list of English texts or reasons."""

    name = "MT"

    def __init__(self, config: MTConfig) -> None:
        """Loads the checkpoint; Seq2SeqError if it cannot be loaded or cannot write English."""
        model, self._tokenizer = load_seq2seq(config, "tools.mt")
        self._languages: dict[str, int] = self._tokenizer.get_vocab()
        if ENGLISH not in self._languages or not hasattr(self._tokenizer, "src_lang"):
            raise Seq2SeqError(
                f"tools.mt.model {config.model!r}: its tokenizer has no language {ENGLISH}; "
                "choose a checkpoint of NLLB's architecture"
            )
        self._translator = Seq2Seq(
            model,
            self._tokenizer,
            max_batch_tokens=config.max_batch_tokens,
            beams=config.beams,
            first_token=self._languages[ENGLISH],
        )
        self._min_confidence = config.min_confidence
        self._max_tokens = min(config.max_input_tokens, self._translator.max_positions or 2**31)
        self._encoding = threading.Lock()  # the source language is a state of the tokenizer

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Translate every text that can be."""
        results: list[ToolResult | None] = []
        sources: list[Ids] = []
        for one in inputs:
            try:
                sources.append(self._source(well_formed(one.text).strip()))
                results.append(None)
            except NoTranslationError as error:
                results.append(ToolResult(reason=str(error)))
        limits = [_LIMIT_STEP * (1 + _LIMIT_PER_TOKEN * len(source) // _LIMIT_STEP) for source in sources]
        texts = iter(self._translator.generate([[source] for source in sources], limits))
        return [result or _result(next(texts)) for result in results]

    def _source(self, text: str) -> Ids:
        """The model's input; NoTranslationError where there is nothing to translate, or no way to."""
        if not text:
            raise NoTranslationError("empty text")
        if len(text) > _CHARACTERS_PER_TOKEN * self._max_tokens:
            raise NoTranslationError("text too long")
        code = self._language(text)
        with self._encoding:
            self._tokenizer.src_lang = code
            # What looks like one of the tokenizer's own tokens is text like any other.
            ids: Ids = self._tokenizer(text, split_special_tokens=True, verbose=False).input_ids
        if len(ids) > self._max_tokens:
            raise NoTranslationError("text too long")
        return ids

    def _language(self, text: str) -> str:
        label, confidence = identify_language(text)
        code = flores_code(label, text)
        if confidence < self._min_confidence:
            raise NoTranslationError("language not certain")
        if code == ENGLISH:
            raise NoTranslationError("already English")
        if code not in self._languages:
            raise NoTranslationError("language not known to the model")
        return code


def _result(text: str | None) -> ToolResult:
    if text is None:
        return ToolResult(reason="translation too long")
    return ToolResult(text) if text else ToolResult(reason="empty translation")
