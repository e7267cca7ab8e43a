"""The syntax of calls, and its tokens under any tokenizer (paper section 2, "Approach").

In: a tool's name, an input, a result; or a text and its calls; or a tokenizer. Out: ``e(c)`` and ``e(c,
r)``, the text x* with the calls in it and x again, the ids of ``<API>``. The vocabulary is not changed:
``<API>``, ``</API>`` and the arrow are the ordinary strings `` [``, ``]`` and `` -> ``. This module knows
no model and decides nothing about calls.

Every text is looked at as ``s = " " + x`` and tokenised as something else's continuation, so that a text's
first word is the same token wherever the text stands (docs/method.md, "From a text to tokens").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.base.records import TOOL_NAMES, ToolName
from tools_service.base.errors import PipelineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS = TOOL_NAMES
API = " ["
END = "]"
ARROW = " -> "

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # line breaks among them
_CONTROL = re.compile(f"[{CONTROLS}]")
_CALL = re.compile(rf" \[(?:{'|'.join(TOOLS)})\([^\[\]\r\n]*?\)(?: -> [^\[\]\r\n]*)?\]")
_ANCHORS = ("a", ".", "1", "x y", "\n")


class CallError(PipelineError, ValueError):
    """A call that cannot be written in the syntax, or that is not where it should be."""


class TokenizerError(PipelineError, ValueError):
    """A tokenizer that cannot carry the call syntax; the message says which property is missing."""


class PlacedCall(Protocol):
    """A call and the character offset in x before which it stands; `records.Call` is one."""

    @property
    def tool(self) -> ToolName: ...
    @property
    def position(self) -> int: ...
    @property
    def input(self) -> str: ...
    @property
    def result(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a drawn text is not a call of the wanted tool; the manifest counts these reasons."""

    reason: str


def linearise(tool: ToolName, argument: str, result: str | None = None) -> str:
    """``e(c)`` or, with a result, ``e(c, r)``, with the space of ``<API>`` in front.

    Raises CallError where the rendered call could not be found and removed again: a bracket or a control
    character in input or result, an arrow in the input. Tools clean their results of these before.
    """
    for name, part in (("input", argument), ("result", result or "")):
        if "[" in part or END in part or _CONTROL.search(part):
            raise CallError(f"{tool}: the {name} has a bracket or a control character: {part!r}")
    if "->" in argument:
        raise CallError(f"{tool}: the input has an arrow: {argument!r}")
    arrow = "" if result is None else ARROW + result
    return f"{API}{tool}({argument}){arrow}{END}"


def parse_call(drawn: str, tool: ToolName) -> str | Malformed:
    """The input of the call that `drawn` (what the model wrote after ``<API>``) makes of `tool`, or why it
    makes none.

    What follows the first ``]`` is not part of the call. White space around the input is dropped. An
    unfinished draw gets the reason why it could not have become a call, or "too_long" if it could.
    """
    body, end, _ = drawn.partition(END)
    head = f"{tool}("
    if not body.startswith(head):
        return Malformed("too_long" if not end and head.startswith(body) else "wrong_tool")
    rest = body[len(head) :]
    if control := _CONTROL.search(rest):
        return Malformed("newline" if control.group() in "\r\n" else "control_character")
    if "[" in rest:
        return Malformed("bracket")
    if "->" in rest:
        return Malformed("arrow")
    if "\ufffd" in rest:
        return Malformed("broken_character")
    if tool == "Calendar" and rest.removesuffix(")"):
        return Malformed("input_not_empty")
    if not end:
        return Malformed("too_long")
    if not rest.endswith(")"):
        return Malformed("no_parenthesis")
    argument = rest[:-1].strip()
    return argument if argument or tool == "Calendar" else Malformed("empty_input")


def insert_calls(text: str, calls: Sequence[PlacedCall]) -> str:
    """x*: the text with each ``e(c, r)`` before the character its position names (paper section 2, "Model
    Finetuning").

    Calls at one position stand in the order given. At the start of the text a call has its space behind it
    instead of in front: x* is ``s`` with the calls inserted, without the first space of ``s``.
    """
    pieces, done = [], 0
    for call in sorted(calls, key=lambda call: call.position):
        at = _offset(text, call)
        pieces += [(" " + text)[done:at], linearise(call.tool, call.input, call.result)]
        done = at
    return "".join([*pieces, (" " + text)[done:]])[1:]


def remove_calls(augmented: str, calls: Sequence[PlacedCall] | None = None) -> str:
    """The text that `insert_calls` started from, byte for byte.

    With the calls that were inserted this is exact for every text. Without them whatever looks like a call
    goes: that gives x back exactly if x itself contains nothing that looks like a call of one of the five
    tools.
    """
    if calls is None:
        return _CALL.sub("", " " + augmented)[1:]
    rest, pieces, done = " " + augmented, [], 0
    for call in sorted(calls, key=lambda call: call.position):
        written = linearise(call.tool, call.input, call.result)
        keep = (call.position + 1 if call.position else 0) - done
        if call.position < 0 or rest[keep : keep + len(written)] != written:
            raise CallError(f"no{written} at position {call.position} of {augmented!r}")
        pieces.append(rest[:keep])
        rest, done = rest[keep + len(written) :], done + keep
    return "".join([*pieces, rest])[1:]


def split_calls(augmented: str) -> list[str]:
    """``" " + x*`` cut before and after whatever looks like a call; joined, the pieces give it back."""
    return [piece for piece in re.split(f"({_CALL.pattern})", " " + augmented) if piece]


def _offset(text: str, call: PlacedCall) -> int:
    """Where in ``" " + text`` the call goes: before the leading space at position 0, else before that
    character."""
    if not 0 <= call.position <= len(text):
        raise CallError(f"{call.tool}({call.input}): position {call.position} outside 0..{len(text)}")
    return call.position + 1 if call.position else 0


@dataclass(frozen=True, slots=True)
class Pieces:
    """A string as tokens, n of them: `ids` [n], and in `starts` [n] the character each begins at, or -1.

    A leading space belongs to the word behind it even where the tokenizer reports trimmed spans. Minus one
    marks a token that does not begin at a character boundary, as the later bytes of a character spread over
    several tokens.
    """

    ids: np.ndarray
    starts: np.ndarray


def continuation(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> list[Pieces]:
    """Each string's tokens as they come after something else: no BOS, no dummy prefix of the string's own.

    Found by tokenising an anchor and the string together and cutting the anchor's tokens off, which is
    right for byte-level and for SentencePiece-like tokenizers alike; an anchor that merges with the string
    is replaced by the next. Text that spells a special token is plain text. Raises TokenizerError when no
    anchor works.
    """
    found: dict[int, Pieces] = {}
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
                found[index] = Pieces(ids[size:], _starts(spans[size:] - len(anchor)))
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
class Markers:
    """What a tokenizer makes of the call syntax.

    `api` are the ids of ``<API>`` (`` [`` as a continuation); p(<API>) is the product along them. `bos` is
    what every sequence begins with: the tokenizer's BOS if its own template puts one there, else nothing.
    `pieces` are the strings of all ids as continuations: where a draw ends is decided on these, never on
    one id, since ``)]``, ``].`` or ``](`` may be one token.
    """

    api: tuple[int, ...]
    bos: tuple[int, ...]
    pieces: tuple[str, ...]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> Markers:
        """Raises TokenizerError if the tokenizer cannot carry calls, saying why."""
        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(f"{_name(tokenizer)}: it reports no character offsets; use a tokenizer.json")
        probe = " [Calculator(27 + 4 * 2) -> 35] ends [Calendar()]."
        whole, api, *names = continuation(tokenizer, [probe, API, *(f"{API}{tool}(" for tool in TOOLS)])
        [written] = texts_of(tokenizer, [whole.ids.tolist()])
        if written != probe:
            raise TokenizerError(
                f"{_name(tokenizer)}: writes {probe!r} as {written!r}; calls would not survive it"
            )
        for tool, pieces in zip(TOOLS, names, strict=True):
            if not np.array_equal(pieces.ids[: len(api.ids)], api.ids):
                message = f"merges {API!r} with the name in {API + tool!r}: <API> has no ids of its own"
                raise TokenizerError(f"{_name(tokenizer)}: {message}")
        plain, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        bos = tokenizer.bos_token_id
        begins = bos is not None and full[:1] == [bos] and plain[:1] != [bos]
        strings = texts_of(tokenizer, [[token] for token in range(len(tokenizer))])
        return Markers(tuple(api.ids.tolist()), (bos,) if begins else (), tuple(strings))


def texts_of(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
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
