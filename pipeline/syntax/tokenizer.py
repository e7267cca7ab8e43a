"""Tokens of texts and of the call syntax under any tokenizer (docs/method.md, "From a text to tokens")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.syntax.calls import API
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.tools.contract import TOOL_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("a", ".", "1", "x y", "\n")


class TokenizerError(ToolformerError, ValueError):
    """A tokenizer that cannot carry the call syntax; the message says which property is missing."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A string as tokens, n of them: `ids` [n], and in `starts` [n] the character each begins at, or -1.

    A leading space belongs to the word behind it even where the tokenizer reports trimmed spans. Minus one
    marks a token that does not begin at a character boundary, as the later bytes of a character spread over
    several tokens.
    """

    ids: np.ndarray
    starts: np.ndarray


def tokenize_continuations(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[TokenizedText]:
    """Each string's tokens as they come after something else: no BOS, no dummy prefix of the string's own.

    Found by tokenising an anchor and the string together and cutting the anchor's tokens off, which is
    right for byte-level and for SentencePiece-like tokenizers alike; an anchor that merges with the string
    is replaced by the next. Text that spells a special token is plain text. Raises TokenizerError when no
    anchor works.
    """
    found: dict[int, TokenizedText] = {}
    for anchor in _ANCHORS:
        todo = [index for index in range(len(strings)) if index not in found]
        if not todo:
            break
        head = _encode(tokenizer, [anchor])[0]
        for index, (ids, spans) in zip(
            todo, _encode(tokenizer, [anchor + strings[i] for i in todo]), strict=True
        ):
            size = len(head[0])
            if np.array_equal(ids[:size], head[0]) and (spans[size:] >= len(anchor)).all():
                found[index] = TokenizedText(ids[size:], _starts(spans[size:] - len(anchor)))
    if len(found) < len(strings):
        missing = next(string for index, string in enumerate(strings) if index not in found)
        raise TokenizerError(f"{_name(tokenizer)}: no way to tokenise {missing[:40]!r} as a continuation")
    return [found[index] for index in range(len(strings))]


def _encode(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids [n] and character spans [n, 2] of each string."""
    batch = tokenizer(
        strings,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        (np.array(ids, dtype=np.int64), np.array(spans, dtype=np.int64).reshape(-1, 2))
        for ids, spans in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _starts(spans: np.ndarray) -> np.ndarray:
    """Where each token begins: at the end of what came before, unless that reaches into the token."""
    reached = np.maximum.accumulate(np.concatenate([[0], spans[:, 1]]))[:-1]
    return np.where(spans[:, 0] >= reached, reached, -1)


@dataclass(frozen=True, slots=True)
class CallTokens:
    """What a tokenizer makes of the call syntax.

    `api` are the ids of ``<API>`` (`` [`` as a continuation); p(<API>) is the product along them. `bos` is
    what every sequence begins with: the tokenizer's BOS if its own template puts one there, else nothing.
    `pieces` are the strings of all ids as continuations: where a draw ends is decided on these, never on
    one id, since ``)]``, ``].`` or ``](`` may be one token.
    """

    api: tuple[int, ...]
    bos: tuple[int, ...]
    token_strings: tuple[str, ...]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> CallTokens:
        """Raises TokenizerError if the tokenizer cannot carry calls, saying why."""
        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(f"{_name(tokenizer)}: it reports no character offsets; use a tokenizer.json")
        probe = " [Calculator(27 + 4 * 2) -> 35] ends [Calendar()]."
        whole, api, *names = tokenize_continuations(
            tokenizer, [probe, API, *(f"{API}{tool}(" for tool in TOOL_NAMES)]
        )
        [written] = decode_continuations(tokenizer, [whole.ids.tolist()])
        if written != probe:
            raise TokenizerError(
                f"{_name(tokenizer)}: writes {probe!r} as {written!r}; calls would not survive it"
            )
        for tool, pieces in zip(TOOL_NAMES, names, strict=True):
            if not np.array_equal(pieces.ids[: len(api.ids)], api.ids):
                message = f"merges {API!r} with the name in {API + tool!r}: <API> has no ids of its own"
                raise TokenizerError(f"{_name(tokenizer)}: {message}")
        plain, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        bos = tokenizer.bos_token_id
        begins = bos is not None and full[:1] == [bos] and plain[:1] != [bos]
        strings = decode_continuations(tokenizer, [[token] for token in range(len(tokenizer))])
        return CallTokens(tuple(api.ids.tolist()), (bos,) if begins else (), tuple(strings))


def decode_continuations(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The strings that sequences of ids spell as continuations, leading spaces included.

    Bytes that are no whole character give a replacement character.
    """
    if not sequences:
        return []  # batch_decode would make one string of no sequences
    anchor = _encode(tokenizer, ["a"])[0][0].tolist()
    spelt = tokenizer.batch_decode(
        [[*anchor, *ids] for ids in sequences], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return [text[1:] for text in spelt]


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the tokens of a text as the model sees it. Small to pickle."""

    model_path: str

    def __call__(self, text: str) -> int:
        return len(tokenize_continuations(load_tokenizer(self.model_path), [" " + text])[0].ids)


@cache
def load_tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, once per process; ConfigurationError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model.path {model_path!r}: cannot load its tokenizer: {error}") from error
