"""The numbered lines of a possibly compressed stream of bytes, as far as they can be read.

In: chunks of raw bytes. Out: `Line`s. One that cannot be read (damage, truncation, too long, not
UTF-8) has a problem instead of a text, and reading goes on if it can. At most one line is held in
memory. It knows no JSON, documents or file systems.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

MAX_LINE_BYTES = 64 * 2**20

_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "gz": (lambda: zlib.decompressobj(wbits=31), "gzip"),
    "bz2": (bz2.BZ2Decompressor, "bzip2"),
    "zst": (lambda: zstandard.ZstdDecompressor().decompressobj(), "zstandard"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its break, numbered from 1, or a `problem` (``KIND: details``) instead."""

    number: int
    text: str = ""
    problem: str | None = None


class _DamagedError(Exception):
    """The compressed stream ends too early or is not what it should be."""


def read_lines(chunks: Iterable[bytes], compression: str, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield lines of at most `max_bytes` bytes; `compression` is "", "gz", "bz2" or "zst"."""
    number = 1
    pending = bytearray()
    length = 0
    try:
        for chunk in _decompress(chunks, *_DECOMPRESSORS[compression]) if compression else chunks:
            *complete, rest = chunk.split(b"\n")
            for piece in complete:
                length += len(piece)
                if length <= max_bytes:
                    pending += piece
                yield _decode(number, pending, length, max_bytes)
                number, pending, length = number + 1, bytearray(), 0
            length += len(rest)
            if length <= max_bytes:
                pending += rest
    except _DamagedError as damage:
        yield Line(number, problem=f"damaged file: {damage}; nothing after line {number - 1} can be read")
        return
    if length:
        yield _decode(number, pending, length, max_bytes)


def _decode(number: int, data: bytearray, length: int, max_bytes: int) -> Line:
    if length > max_bytes:
        return Line(number, problem=f"line too long: {length:,} bytes, at most {max_bytes:,} are read")
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return Line(number, problem=f"not UTF-8: {error.reason} at byte {error.start} of the line")
    return Line(number, text.removesuffix("\r"))


def _decompress(chunks: Iterable[bytes], new: Callable[[], Any], name: str) -> Iterator[bytes]:
    """Decompress a stream of members, each with a `new` object. _DamagedError where it breaks.

    Everything in front of the damage is yielded first, which gzip.open does not do.
    """
    decompressor, inside_member = new(), True
    for chunk in chunks:
        data = chunk
        while data:
            inside_member = True
            try:
                yield decompressor.decompress(data)
            except (zlib.error, zstandard.ZstdError, OSError) as error:  # bz2 raises OSError
                raise _DamagedError(f"not {name}: {error}") from error
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor, inside_member = new(), False
    if inside_member:
        raise _DamagedError(f"{name} stream ends too early")
