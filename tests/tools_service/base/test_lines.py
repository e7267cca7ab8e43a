"""Lines of files that are damaged, made to fill the memory, or something else than their names say."""

from __future__ import annotations

import bz2
import gzip
import random
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
import zstandard

from tools_service.base.lines import MAX_LINE_BYTES, Line, read_lines

pytestmark = pytest.mark.unit

ROWS = [f"row {number} {random.Random(number).getrandbits(400):x}" for number in range(3_000)]
DATA = "".join(f"{row}\n" for row in ROWS).encode()


def zstd(data: bytes, **parameters: int) -> bytes:
    settings = zstandard.ZstdCompressionParameters.from_level(3, **parameters)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return bytes(compressor.compress(data) + compressor.flush())


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": lambda data: zstd(data, write_checksum=1),
    "bz2": lambda data: bz2.compress(data, 1),
}
PACKED = {name: pack(DATA) for name, pack in PACK.items()}


def read(data: bytes, compression: str = "", chunk_bytes: int = 65_536) -> list[Line]:
    chunks = (data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))
    return list(read_lines(chunks, compression))


@pytest.mark.parametrize("place", [n / 12 for n in range(1, 12)])
@pytest.mark.parametrize("name", PACK)
def test_a_flipped_byte_leaves_the_lines_before_it_and_says_where(name: str, place: float) -> None:
    damaged = bytearray(PACKED[name])
    at = int(len(damaged) * place)
    damaged[at] ^= 0x55
    *lines, last = read(bytes(damaged), name)
    assert last.problem is not None
    assert last.problem.startswith("damaged file: ")
    assert f"nothing after line {len(lines)} can be read" in last.problem
    sound = next((n for n, line in enumerate(lines) if line.text != ROWS[n]), len(lines))
    # A block is lost whole: 128 KiB of zstandard, 100 kB of bzip2. gzip loses what follows the byte only.
    block = {"gz": 2_000, "zst": 2**17, "bz2": 100_000}[name]
    assert sound * len(DATA) / len(ROWS) > len(DATA) * place - block - 1_000


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("row_count", [1, 20, 3_000])
def test_every_line_before_a_wrong_checksum_is_read(name: str, row_count: int) -> None:
    if name == "bz2":
        pytest.skip("bzip2 checks before it gives anything")
    packed = bytearray(PACK[name]("".join(f"{row}\n" for row in ROWS[:row_count]).encode()))
    packed[-5 if name == "gz" else -1] ^= 1
    *lines, last = read(bytes(packed), name)
    assert [line.text for line in lines] == ROWS[:row_count]
    assert "checksum does not match" in str(last.problem)


def skippable(size: int) -> bytes:
    return b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((PACKED[name], named) for name in PACK for named in ("", *PACK)),
        *((PACKED[name] + bytes(padding), name) for name in PACK for padding in (1, 511, 200_000)),
        *((zstd(DATA, window_log=log, enable_ldm=1), "zst") for log in (10, 27, 28, 30, 31)),
        (skippable(100) + PACKED["zst"] + skippable(0), "zst"),
        (zstandard.ZstdCompressor(level=22).compress(DATA), "zst"),
        (DATA, ""),
        (DATA, "gz"),
        (DATA, "zst"),
        (b"\xef\xbb\xbf" + DATA, "gz"),
        (DATA.replace(b"\n", b"\r\n"), ""),
        (DATA[:-1], ""),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [7_001, 65_536])
def test_healthy_files_are_read_whatever_they_are_called(data: bytes, name: str, chunk_bytes: int) -> None:
    lines = read(data, name, chunk_bytes)
    assert [line.text for line in lines] == ROWS
    assert not any(line.problem for line in lines)


@pytest.mark.parametrize("name", PACK)
def test_members_with_padding_between_them_are_one_file(name: str) -> None:
    one = PACK[name](b"one\n")
    assert [line.text for line in read(one + bytes(512) + one * 2, name)] == ["one"] * 3


OTHER = {
    "utf-16": '{"text": "x"}\n'.encode("utf-16"),
    "utf-16-le": '{"text": "x"}\n'.encode("utf-16-le"),
    "utf-16-be": '{"text": "x"}\n'.encode("utf-16-be"),
    "utf-32": '{"text": "x"}\n'.encode("utf-32"),
    "parquet": b"PAR1\x15\x04\n\x15",
    "zip": b"PK\x03\x04\x14\0\n\x08",
    "xz": b"\xfd7zXZ\0\0\x04\n",
    "lz4": b"\x04\x22\x4d\x18\x64\n",
    "arrow": b"ARROW1\0\0\xff\n",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("content", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("pack", [bytes, *PACK.values()])
def test_a_file_that_is_no_text_is_one_problem(content: bytes, pack: Callable[[bytes], bytes]) -> None:
    [line] = read(pack(content * 3))
    assert str(line.problem).startswith("damaged file: ")
    assert any(word in str(line.problem) for word in ("iconv", "unpack or rename", "git lfs pull"))


@pytest.mark.parametrize("inner", ["gz", "zst"])
@pytest.mark.parametrize("outer", PACK)
def test_a_file_that_is_packed_twice_is_one_problem(outer: str, inner: str) -> None:
    [line] = read(PACK[outer](PACK[inner](b"one\n" * 100)))
    assert "in another" in str(line.problem)


def test_a_frame_that_needs_a_dictionary_says_so() -> None:
    dictionary = zstandard.ZstdCompressionDict(
        zstandard.train_dictionary(500, [b"a line %d" % n for n in range(9_999)]).as_bytes()
    )
    [line] = read(zstandard.ZstdCompressor(dict_data=dictionary).compress(b"a line 5\n"))
    assert "zstd -d -D" in str(line.problem)


@pytest.mark.parametrize("content", [b"BZhang said", b"PK is a name", b"\0abc", b"(\xc2\xb5", b"P*M", b""])
def test_a_text_that_begins_like_another_format_is_a_text(content: bytes) -> None:
    assert [line.text.encode() for line in read(content)] == ([content] if content else [])


@pytest.mark.parametrize("unit", [b"a" * 2**20, b"\n" * 20 + b" " * 2**20])
@pytest.mark.parametrize("name", ["gz", "zst"])
def test_a_bomb_is_read_in_steps(name: str, unit: bytes) -> None:
    """128 MiB in some KiB: the memory is that of a line and a step."""
    packed = PACK[name](unit * 128)
    tracemalloc.start()
    try:
        for line in read_lines([packed], name, max_bytes=2**20):
            assert len(line.text) <= 2**20
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("message", ["Frame requires too much memory for decoding", "not enough memory"])
def test_too_little_memory_is_not_damage(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    class Poor:
        eof = False

        def decompress(self, data: bytes) -> Iterable[bytes]:
            raise zstandard.ZstdError(f"zstd decompressor error: {message}")

    monkeypatch.setattr(
        "tools_service.base.lines._DECOMPRESSORS", {"zst": (Poor, Poor.decompress, 512, "zstandard")}
    )
    with pytest.raises(MemoryError, match=message):
        read(PACKED["zst"], "zst")


def test_an_array_in_one_long_line_gets_the_advice_to_convert_it() -> None:
    [line] = read(b"[" + b"1," * (MAX_LINE_BYTES // 2) + b"1]")
    assert "line too long" in str(line.problem)
    assert "jq -c '.[]'" in str(line.problem)


def test_bytes_that_are_no_utf8_are_surrogates_beside_the_problem() -> None:
    [line] = read(b"caf\xe9")
    assert line == Line(1, "caf\udce9", "not UTF-8: unexpected end of data at byte 3 of the line")
