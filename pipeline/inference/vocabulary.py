"""A model's tokens, as decoding needs them: <API>, ends of text, strings to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import ApiTokenMask
from pipeline.syntax.tokenizer import decode_continuations, special_ids, tokenize_continuations


class Vocabulary:
    """What decoding needs to know of a model's tokens. Made once for a model."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.api = model.call_tokens.api
        self.strings = model.call_tokens.token_strings
        self.max_positions = model.max_positions
        self.api_mask = ApiTokenMask(model.call_tokens, model.device)
        # The ids that end a text: those of the generation configuration and of the tokenizer.
        configured = model.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        self.eos_token_ids = {*ids, model.tokenizer.eos_token_id} - {None}
        self.special_token_ids = set(special_ids(model.tokenizer))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens behind other text."""
        [text] = decode_continuations(self.model.tokenizer, [list(tokens)])
        return text

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text behind other text."""
        [tokenized] = tokenize_continuations(self.model.tokenizer, [text])
        tokens: list[int] = tokenized.ids.tolist()
        return tokens
