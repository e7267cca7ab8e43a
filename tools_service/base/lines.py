"""The numbered lines of a possibly compressed stream of bytes, as far as they can be read.

In: chunks of raw bytes. Out: `Line`s; what cannot be read (a damaged or truncated file, a line too long to
hold, bytes that are no UTF-8) is a `Line` with the problem instead of the text, so that it is counted and the
rest is still read. At most one line is held in memory. Knows nothing of JSON, documents or filesystems.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import zstandard

MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its line break, numbered from 1; with a `problem` (``KIND: details``) it has no text."""

    number: int
    text: str = ""
    problem: str | None = None


class _DamagedError(Exception):
    """The compressed stream ends or breaks here."""


class _Decompressor(Protocol):
    """What zlib's and zstandard's objects share; one of them reads one gzip member or zstandard frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def read_lines(chunks: Iterable[bytes], compression: str, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of a stream; `compression` is "", "gz", "bz2" or "zst". A damaged one ends with a problem."""
    number = 1
    pending = bytearray()
    length = 0
    try:
        for chunk in _decompressed(chunks, compression):
            *complete, rest = chunk.split(b"\n")
            for piece in complete:
                length += len(piece)
                if length <= max_bytes:
                    pending += piece
                yield _decoded(number, pending, length, max_bytes)
                number, pending, length = number + 1, bytearray(), 0
            length += len(rest)
            if length <= max_bytes:
                pending += rest
    except _DamagedError as damage:
        yield Line(number, problem=f"damaged file: {damage}; nothing after line {number - 1} can be read")
        return
    if length:
        yield _decoded(number, pending, length, max_bytes)


def _decoded(number: int, data: bytearray, length: int, max_bytes: int) -> Line:
    if length > max_bytes:
        return Line(number, problem=f"line too long: {length:,} bytes, at most {max_bytes:,} are read")
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return Line(number, problem=f"not UTF-8: {error.reason} at byte {error.start} of the line")
    return Line(number, text.removesuffix("\r"))


def _decompressed(chunks: Iterable[bytes], compression: str) -> Iterator[bytes]:
    if compression == "":
        yield from chunks
    elif compression == "gz":
        yield from _inflated(chunks, lambda: zlib.decompressobj(wbits=31), "gzip")
    elif compression == "bz2":
        yield from _inflated(chunks, bz2.BZ2Decompressor, "bzip2")
    else:
        yield from _inflated(chunks, lambda: zstandard.ZstdDecompressor().decompressobj(), "zstandard")


def _inflated(chunks: Iterable[bytes], new: Callable[[], _Decompressor], name: str) -> Iterator[bytes]:
    """What could be decompressed is passed on before the damage behind it is noticed; gzip.open loses it."""
    decompressor, within = new(), True
    for chunk in chunks:
        data = chunk
        while data:
            within = True
            try:
                yield decompressor.decompress(data)
            except (zlib.error, zstandard.ZstdError, OSError) as error:  # OSError is bz2's
                raise _DamagedError(f"not {name}: {error}") from error
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor, within = new(), False
    if within:
        raise _DamagedError(f"{name} stream ends too early")
