"""The numbered lines of a possibly compressed stream of bytes, as far as they can be read.

In: chunks of raw bytes. Out: `Line`s. One that cannot be read (damage, truncation, too long, not
UTF-8) has a problem instead of a text, and reading goes on if it can. The content decides how it is
decompressed: files with a wrong extension are read. At most one line is held in memory, and data
are decompressed in steps of bounded size. It knows no documents or file systems.
"""

from __future__ import annotations

import bz2
import codecs
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from tools_service.base.json_lines import WANTED

MAX_LINE_BYTES = 64 * 2**20

_STEP_BYTES = 64 * 2**10
# A zstandard decoder has no bound for its output. 4 bytes can stand for a block of 128 KiB, so this
# is at most 16 MiB a step; it costs 10 % of the decompression.
_ZSTD_STEP_BYTES = 512
_MAX_REPLAY_BYTES = 2**20
_MIN_WINDOW_BYTES = 128 * 2**20  # what zstd -d reads without an option
_MAX_WINDOW_BYTES = 2**31  # zstd --long=31, the longest there is
_HEAD_BYTES = 16

_MAGIC = {
    "gz": re.compile(rb"\x1f\x8b"),
    "bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or one to skip
}
_OTHER_FORMATS = {
    b"PAR1": "a Parquet file",
    b"ARROW1\0\0": "an Arrow file",
    b"PK\x03\x04": "a ZIP archive",
    b"\xfd7zXZ\0": "an xz file",
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"\x1f\x8b": "a gzip file in another",
    b"\x28\xb5\x2f\xfd": "a zstandard file in another",
}
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
GIT_LFS_ADVICE = "it is a Git LFS pointer, not the file itself, so fetch that with git lfs pull"
_UTF16_OR_32 = re.compile(rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its break, numbered from 1, or a `problem` (``KIND: details``).

    With a problem the text is empty, or has surrogates for the bytes that are not UTF-8
    ("surrogateescape").
    """

    number: int
    text: str = ""
    problem: str | None = None


class _DamagedError(Exception):
    """The compressed stream ends too early or is not what it should be."""


def read_lines(chunks: Iterable[bytes], compression: str, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield lines of at most `max_bytes` bytes.

    `compression` ("", "gz", "bz2" or "zst") is what the name of the file says. Raises MemoryError
    if there is too little memory to decompress, and whatever `chunks` raises.
    """
    number = 1
    pending = bytearray()
    length = 0
    chunks = iter(chunks)
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    chunks = _chain(head, chunks)
    if kind := _compression(head, compression):
        chunks = _decompress(chunks, kind)
    try:
        for chunk in chunks:
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
        if length:
            yield _decode(number, pending, length, max_bytes)
    except _DamagedError as damage:
        yield Line(number, problem=f"damaged file: {damage}; nothing after line {number - 1} can be read")


def _chain(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _compression(head: bytes, named: str) -> str:
    """The compression that the first bytes show. Without any, a text is a text whatever its name."""
    for kind, magic in _MAGIC.items():
        if magic.match(head):
            return kind
    return "" if _is_text(head) else named


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # may end within a character
    except UnicodeDecodeError:
        return False
    return text != "" and all(character.isprintable() or character.isspace() for character in text)


def _decode(number: int, data: bytearray, length: int, max_bytes: int) -> Line:
    if number == 1:
        _require_text(data)
    if length > max_bytes:
        hint = f"; {WANTED}" if number == 1 and data[:64].lstrip()[:1] == b"[" else ""
        return Line(number, problem=f"line too long: {length:,} bytes, at most {max_bytes:,} are read{hint}")
    encoding = "utf-8-sig" if number == 1 else "utf-8"
    try:
        return Line(number, data.decode(encoding).removesuffix("\r"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error.reason} at byte {error.start} of the line"
        return Line(number, data.decode(encoding, "surrogateescape").removesuffix("\r"), problem)


def _require_text(data: bytearray) -> None:
    """_DamagedError if a file that begins with `data` is no text in UTF-8."""
    if _UTF16_OR_32.match(data):
        raise _DamagedError("the text is UTF-16 or UTF-32, convert it with iconv -f UTF-16 -t UTF-8")
    if data.startswith(GIT_LFS_POINTER):
        raise _DamagedError(GIT_LFS_ADVICE)
    for magic, name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            raise _DamagedError(f"it is {name}, whatever its name says, so unpack or rename it")


def _decompress(chunks: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """Decompress a stream of members in steps. _DamagedError where it breaks.

    Everything in front of the damage is yielded first, which gzip.open does not do. Zeros after a
    member are padding.
    """
    new, produce, input_bytes, name = _DECOMPRESSORS[kind]
    decompressor, inside_member = new(), True
    for chunk in chunks:
        for start in range(0, len(chunk), input_bytes):
            data = chunk[start : start + input_bytes]
            while data and (inside_member or (data := data.lstrip(b"\0"))):
                inside_member = True
                try:
                    yield from produce(decompressor, data)
                except (zlib.error, zstandard.ZstdError, OSError) as error:  # bz2 raises OSError
                    if "memory" in str(error):
                        raise MemoryError(f"{name}: {error}") from error
                    raise _DamagedError(_describe_damage(name, str(error))) from error
                data = b""
                if decompressor.eof:
                    data = decompressor.unused_data
                    decompressor, inside_member = new(), False
    if inside_member:
        raise _DamagedError(f"{name} stream ends too early")


def _describe_damage(name: str, error: str) -> str:
    if "data check" in error or "checksum" in error or "length check" in error:
        return f"{name} checksum does not match ({error}): lines before this one may be wrong, too"
    if "ictionary" in error:
        return f"{name} with a dictionary of its own, so unpack it with zstd -d -D DICTIONARY ({error})"
    return f"not {name}: {error}"


def _gunzip(decompressor: Any, data: bytes) -> Iterator[bytes]:
    """The output for `data` in steps, up to the very byte in front of damage."""
    while data and not decompressor.eof:
        before = decompressor.copy()
        try:
            piece = decompressor.decompress(data, _STEP_BYTES)
        except zlib.error:
            # A step that fails gives nothing: go back, and go byte by byte up to the damage.
            for byte in data:
                yield before.decompress(bytes((byte,)))
            raise
        yield piece
        data = decompressor.unconsumed_tail


def _bunzip2(decompressor: Any, data: bytes) -> Iterator[bytes]:
    yield decompressor.decompress(data, _STEP_BYTES)
    while not (decompressor.eof or decompressor.needs_input):
        yield decompressor.decompress(b"", _STEP_BYTES)


class _ZstdFrame:
    """A zstandard frame with the interface of zlib's decompressor, which gives all up to damage."""

    def __init__(self) -> None:
        self._new = zstandard.ZstdDecompressor(max_window_size=_max_window_bytes()).decompressobj
        self._decompressor = self._new()
        self._input = bytearray()  # the frame so far, up to _MAX_REPLAY_BYTES
        self._output_bytes = 0

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def decompress(self, data: bytes) -> Iterator[bytes]:
        if len(self._input) <= _MAX_REPLAY_BYTES:
            self._input += data
        try:
            piece = self._decompressor.decompress(data)
        except zstandard.ZstdError:
            if len(self._input) <= _MAX_REPLAY_BYTES:
                yield from self._before_damage()
            raise
        self._output_bytes += len(piece)
        yield piece

    def _before_damage(self) -> Iterator[bytes]:
        """Give the frame again byte by byte: a step that fails gives none of its blocks."""
        decompressor, skip = self._new(), self._output_bytes
        with suppress(zstandard.ZstdError):
            for byte in self._input:
                piece = decompressor.decompress(bytes((byte,)))
                yield piece[skip:]
                skip = max(0, skip - len(piece))


def _max_window_bytes() -> int:
    """The longest window to allow: what fits a quarter of the memory, 128 MiB to 2 GiB.

    A decoder holds one window. Its pages are touched as far as the file has content, so a small
    file with a long window takes little.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no control group, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(max(memory // 4, _MIN_WINDOW_BYTES), _MAX_WINDOW_BYTES)


_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], Callable[[Any, bytes], Iterator[bytes]], int, str]] = {
    "gz": (lambda: zlib.decompressobj(wbits=31), _gunzip, _STEP_BYTES, "gzip"),
    "bz2": (bz2.BZ2Decompressor, _bunzip2, _STEP_BYTES, "bzip2"),
    "zst": (_ZstdFrame, _ZstdFrame.decompress, _ZSTD_STEP_BYTES, "zstandard"),
}
