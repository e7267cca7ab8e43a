"""Texts and the call syntax as tokens, for any tokenizer (paper section 2, "Approach").

In: a tokenizer of transformers and strings. Out: token ids with character offsets, the ids of ``<API>``,
the string of every id. Strings are tokenized as continuations of other text (docs/method.md, "From a text
to tokens"). A tokenizer that cannot represent calls is refused with TokenizerError. No model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from tools_service.base.errors import ConfigurationError
from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.calls import API
from tools_service.syntax.prompts import PromptTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("a", ".", "1", "x y", "\n")
_ROUND_TRIP = " [Sum(27 + 4 * 2) -> 35] ends [Today()]."


class TokenizerError(ConfigurationError, ValueError):
    """A tokenizer that cannot represent the call syntax. The message names the missing property."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A string as n tokens: `ids` [n] and `starts` [n], the character offset of each token.

    A leading space belongs to the word behind it, even if the tokenizer reports trimmed spans. The
    start is -1 for the second and later bytes of a character that is spread over several tokens.
    """

    ids: np.ndarray
    starts: np.ndarray


def tokenize_continuations(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[TokenizedText]:
    """The tokens that each string has when it follows other text: no BOS, no added prefix space.

    An anchor and the string are tokenized together, and the anchor's tokens are cut off; if they
    merge, the next anchor is tried. This is right for byte-level and SentencePiece-like tokenizers.
    Special tokens in a string are plain text. Raises TokenizerError if no anchor works.
    """
    results: dict[int, TokenizedText] = {}
    pending = list(range(len(strings)))
    for anchor in _ANCHORS:
        anchored = [anchor + strings[index] for index in pending]
        (anchor_ids, _), *encoded = _encode(tokenizer, [anchor, *anchored])
        size = len(anchor_ids)
        for index, (ids, all_spans) in zip(pending, encoded, strict=True):
            spans = all_spans[size:]
            if ids[:size] == anchor_ids and all(start >= len(anchor) for start, _ in spans):
                starts = np.array(_starts(spans, len(anchor)), dtype=np.int64)
                results[index] = TokenizedText(np.array(ids[size:], dtype=np.int64), starts)
        pending = [index for index in pending if index not in results]
        if not pending:
            return [results[index] for index in range(len(strings))]
    string = strings[pending[0]][:40]
    raise TokenizerError(f"{_name(tokenizer)}: cannot tokenize {string!r} as a continuation")


def decode_continuations(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The string of each sequence of ids when it follows other text; leading spaces are kept.

    Bytes that form no complete character become a replacement character.
    """
    if not sequences:
        return []  # batch_decode returns one string for an empty batch
    [(anchor_ids, _)] = _encode(tokenizer, ["a"])
    strings = tokenizer.batch_decode(
        [[*anchor_ids, *ids] for ids in sequences],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return [string[1:] for string in strings]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that no text has: special tokens, those that only the vocabulary calls special among them."""
    flagged = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    return sorted({*tokenizer.all_special_ids, *flagged})


Span = tuple[int, int]


def _encode(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> list[tuple[list[int], list[Span]]]:
    """Ids and character spans of each string; spans include spaces."""
    untrimmed = _untrimmed(tokenizer)
    if untrimmed is not None:
        encodings = untrimmed.encode_batch(strings, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]
    batch = tokenizer(
        strings,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


_untrimmed_copies: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer | None] = WeakKeyDictionary()


def _untrimmed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """A copy that reports whole spans, of a tokenizer that cuts spaces off them; None for others.

    A token that ends in spaces would seem to end before them, and the next one to start there.
    """
    if tokenizer not in _untrimmed_copies:
        _untrimmed_copies[tokenizer] = _untrimmed_copy(tokenizer)
    return _untrimmed_copies[tokenizer]


def _untrimmed_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    from tokenizers import Tokenizer

    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    processor = definition["post_processor"] or {}
    trimming = [step for step in (processor, *processor.get("processors", [])) if step.get("trim_offsets")]
    if not trimming:
        return None
    for step in trimming:
        step["trim_offsets"] = False
    copy = Tokenizer.from_str(json.dumps(definition))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _starts(spans: Sequence[Span], origin: int) -> list[int]:
    """Each token starts where the previous tokens end, or at -1 if these reach into the token.

    Offsets count from `origin`, where the first token starts.
    """
    starts, previous_end = [], origin
    for start, end in spans:
        starts.append(previous_end - origin if start >= previous_end else -1)
        previous_end = max(previous_end, end)
    return starts


@dataclass(frozen=True, slots=True)
class CallTokens:
    """The call syntax in the tokens of one tokenizer.

    `api` are the ids of ``<API>``; p(<API>) is the product of their probabilities. `bos` begins
    every sequence: the tokenizer's BOS if its own template adds one, else nothing. `token_strings`
    are the strings of all ids as continuations. The end of a call is found in these strings and not
    by one id, because ``)]``, ``].`` or ``](`` may be one token.
    """

    api: tuple[int, ...]
    bos: tuple[int, ...]
    token_strings: tuple[str, ...]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> CallTokens:
        """Raises TokenizerError, with the reason, if the tokenizer cannot represent calls."""
        name = _name(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(f"{name}: it reports no character offsets; use a tokenizer.json")
        example, api = tokenize_continuations(tokenizer, [_ROUND_TRIP, API])
        [decoded] = decode_continuations(tokenizer, [example.ids.tolist()])
        if decoded != _ROUND_TRIP:
            raise TokenizerError(f"{name}: decodes {_ROUND_TRIP!r} as {decoded!r}; calls would be damaged")
        require_separate_heads(tokenizer, PACKAGED)
        strings = decode_continuations(tokenizer, [[token] for token in range(len(tokenizer))])
        return CallTokens(tuple(api.ids.tolist()), _bos(tokenizer), tuple(strings))


def require_separate_heads(tokenizer: PreTrainedTokenizerBase, tools: Iterable[str]) -> None:
    """Raise TokenizerError unless ``<API>`` has the same ids before the name of each tool."""
    heads = [f"{API}{tool}(" for tool in tools]
    api, *tokenized_heads = tokenize_continuations(tokenizer, [API, *heads])
    for head, tokenized in zip(heads, tokenized_heads, strict=True):
        if not np.array_equal(tokenized.ids[: len(api.ids)], api.ids):
            problem = f"merges {API!r} with the name in {head[:-1]!r}: <API> has no ids of its own"
            raise TokenizerError(f"{_name(tokenizer)}: {problem}")


def _bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The BOS id, if the tokenizer puts it in front of a text."""
    bos = tokenizer.bos_token_id
    without = tokenizer("a", add_special_tokens=False).input_ids
    added = bos is not None and tokenizer("a").input_ids[:1] == [bos] and without[:1] != [bos]
    return (bos,) if added else ()


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of P(x) before the text, where the sequence begins with BOS, and after the text."""
    prefix = tokenizer(template.prefix, add_special_tokens=False, split_special_tokens=True, verbose=False)
    [suffix] = tokenize_continuations(tokenizer, [template.suffix])
    return np.array([*_bos(tokenizer), *prefix.input_ids]), suffix.ids


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the tokens of a text as the model sees it. Pickles without the tokenizer."""

    model_path: str

    def __call__(self, text: str) -> int:
        return len(self.starts(text))

    def starts(self, text: str) -> np.ndarray:
        """The start of each token in ``" " + text``, as in `TokenizedText`."""
        return tokenize_continuations(load_tokenizer(self.model_path), [" " + text])[0].starts


@cache
def load_tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `model_path`, loaded once per process. Raises ConfigurationError."""
    from tools_service.base import checkpoints  # imports transformers

    tokenizer: PreTrainedTokenizerBase = checkpoints.load_tokenizer(model_path, "model.path")
    return tokenizer
