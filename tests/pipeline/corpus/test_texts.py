"""From files of every format to texts; whatever is broken is recorded where it is, and the rest is read."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import pickle
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.config import CorpusConfig
from pipeline.base.records import TEXT_SCHEMA, Document, Text, reason_kind
from pipeline.corpus.files import CorpusError, list_files
from pipeline.corpus.texts import read_corpus, read_file, require_readable, text_id
from tools_service.base.lines import read_lines

pytestmark = pytest.mark.unit

PAGE = "Anna sold 12 jars of honey and later 30 more."
URL = "http://honey.example/2021/03/05/jars.html"


def words(text: str) -> int:
    return len(text.split())


def read(path: Path, **settings: Any) -> list[Text]:
    config = CorpusConfig(paths=(str(path),), **{"min_characters": 1, **settings})
    return list(read_corpus(list_files(config), config, words))


def write(path: Path, *lines: object) -> Path:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


# formats and fields


CCNET = {
    "url": URL,
    "date_download": "2020-03-29T09:04:10Z",
    "title": "Jars",
    "raw_content": PAGE,
    "nlines": 1,
}
DOLMA = {"id": "x", "text": PAGE, "created": "2020-03-29", "metadata": {"url": URL, "title": "Jars"}}
DOLMA_ID = {"id": URL, "text": PAGE, "title": "Jars", "metadata": {"url": "none"}}


@pytest.mark.parametrize("record", [CCNET, DOLMA, DOLMA_ID])
@pytest.mark.parametrize("suffix", ["json.gz", "jsonl", "jsonl.zst"])
def test_the_fields_of_ccnet_and_dolma_are_recognised(
    tmp_path: Path, record: dict[str, Any], suffix: str
) -> None:
    data = (json.dumps(record) + "\n").encode()
    pack = {"json.gz": gzip.compress, "jsonl": bytes, "jsonl.zst": zstandard.ZstdCompressor().compress}[
        suffix
    ]
    path = tmp_path / f"web/a.{suffix}"
    path.parent.mkdir()
    path.write_bytes(pack(data))
    [text] = read(path)
    assert text == Text(text_id(f"web/a.{suffix}", 1, 0), Document(f"web/a.{suffix}#1", URL, "Jars"), PAGE)


def test_named_fields_also_within_objects(tmp_path: Path) -> None:
    record = {"a": {"body": PAGE, "when": "2021-03-05T10:00:00Z"}, "text": "not this", "a.link": "see"}
    path = write(tmp_path / "a.jsonl", record)
    [text] = read(path, text_field="a.body", date_field="a.when", url_field="a.link")
    assert (text.text, text.document.date, text.document.url) == (PAGE, "2021-03-05", "see")


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("2021-03-05", "2021-03-05"),
        ("2021-03-05 10:00", "2021-03-05"),
        ("5 March 2021", None),
        (1614902400, None),
    ],
)
def test_dates_are_days_or_nothing(tmp_path: Path, value: object, date: str | None) -> None:
    [text] = read(write(tmp_path / "a.jsonl", {"text": PAGE, "date": value}))
    assert text.document.date == date


def test_parquet_with_nested_metadata(tmp_path: Path) -> None:
    rows = [
        {"text": f"{PAGE} {i}", "metadata": {"url": URL}, "date": datetime(2021, 3, 5, 10), "weight": i}
        for i in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    texts = read(tmp_path / "a.parquet")
    assert [text.text for text in texts] == [row["text"] for row in rows]
    assert texts[299].document.source.endswith("/a.parquet#300")
    assert {(text.document.url, text.document.date) for text in texts} == {(URL, "2021-03-05")}


def test_parquet_without_the_text_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "a.parquet")
    texts = read(tmp_path / "a.parquet")
    assert len(texts) == 2
    assert "looked for raw_content, text, content, the record has a, b" in str(texts[0].skipped)


def test_a_text_file_is_one_document_of_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"", b"One two.\r", b"Three.", b"", b"Four five.")
    [text] = read(path)
    assert text.text == "One two.\nThree.\n\nFour five."
    assert text.document.source.endswith("a.txt#2")


def test_a_large_text_file_is_read_in_blocks(tmp_path: Path) -> None:
    lines = [b"word " * 20, b""] * 5_000
    texts = read(write(tmp_path / "a.txt", *lines), max_tokens=200)
    assert sum(words(text.text) for text in texts) == 100_000
    assert len({text.document.source for text in texts}) > 5


# broken input


BROKEN: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b'{"text": "' + PAGE.encode(), "not JSON: Unterminated string"),
    "raw NUL": (b'{"text": "a\x00b"}', "not JSON: Invalid control character"),
    "deep nesting": (b"[" * 100_000, "not JSON: "),
    "not an object": (b"[1, 2]", "not an object: the line is a JSON array"),
    "wrong UTF-8": (b'{"text": "caf\xe9"}', "not UTF-8: "),
    "no text": (
        b'{"body": "x", "id": 7}',
        "no text field: looked for raw_content, text, content, the record has",
    ),
    "null": (b'{"text": null}', "no text field: "),
    "a number": (b'{"text": 5}', "text is not a string: it is a JSON number"),
    "empty": (b'{"text": ""}', "empty document: "),
    "white space": (b'{"text": " \\n\\t"}', "empty document: "),
    "escaped NUL": (b'{"text": "a\\u0000b"}', "NUL character: at character 1"),
    "half a pair": (b'{"text": "a\\ud800b"}', "not Unicode: "),
    "10 MB": (b'{"text": "' + b"word " * 2 * 2**20 + b'"}', "document too long: 10,485,760 characters"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_recorded_and_its_neighbours_are_read(tmp_path: Path, name: str) -> None:
    line, reason = BROKEN[name]
    path = write(tmp_path / "web/a.jsonl", {"text": PAGE}, line, {"text": PAGE})
    before, broken, after = read(path)
    assert broken.text == ""
    assert str(broken.skipped).startswith(reason)
    assert str(broken.skipped).endswith(" at web/a.jsonl#2")
    assert broken.document.source == "web/a.jsonl#2"
    assert (before.text, before.skipped, after.text, after.skipped) == (PAGE, None, PAGE, None)
    assert after.document.source == "web/a.jsonl#3"
    pa.Table.from_pylist([{"text_id": broken.text_id, "skipped": broken.skipped}], TEXT_SCHEMA)


def compress_gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1)


def compress_zstandard(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", compress_gzip), ("zst", compress_zstandard)])
def test_of_a_truncated_file_everything_before_the_damage_is_read(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = [json.dumps({"text": f"{PAGE} {i**9}"}) + "\n" for i in range(6_000)]
    packed = pack("".join(lines).encode())
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    *texts, damage = read(path)
    assert len(texts) > 1_000
    assert [text.text for text in texts] == [json.loads(line)["text"] for line in lines[: len(texts)]]
    assert str(damage.skipped).startswith("damaged file: ")
    assert str(damage.skipped).endswith(f"a.jsonl.{suffix}#{len(texts) + 1}")


@pytest.mark.parametrize(("suffix", "pack"), [("gz", compress_gzip), ("zst", compress_zstandard)])
def test_concatenated_compressed_files_are_one(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    data = json.dumps({"text": PAGE}).encode() + b"\n"
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(data) + pack(data * 2))
    assert [text.text for text in read(path)] == [PAGE] * 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl.gz", b"\0\1\2\3 not packed", "damaged file: not gzip"),
        ("a.jsonl.zst", b"\0\1\2\3 not packed", "damaged file: not zstandard"),
        ("a.jsonl.gz", b"", "damaged file: gzip stream ends too early"),
        ("a.parquet", b"PAR1 no more than that PAR1", "damaged file: "),
        ("a.jsonl", b"", "empty file: no document"),
        ("a.txt", b" \n\n", "empty file: no document"),
    ],
)
def test_a_file_without_anything_to_read_is_one_skipped_text(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    [text] = read(tmp_path / name)
    assert str(text.skipped).startswith(reason)
    assert str(text.skipped).endswith(f"{name}#1")


def test_parquet_strings_that_are_no_utf8(tmp_path: Path) -> None:
    column = pa.array([b"fine text here", b"caf\xe9", b"fine again"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [text.skipped and reason_kind(text.skipped) for text in read(tmp_path / "a.parquet")] == [
        None,
        "not UTF-8",
        None,
    ]


def test_bad_lines_of_a_text_file_are_left_out_of_its_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"One.", b"caf\xe9", b"Two.", b"nul \0 here", b"Three.")
    assert [(text.text, text.skipped and reason_kind(text.skipped)) for text in read(path)] == [
        ("One.", None),
        ("", "not UTF-8"),
        ("Two.", None),
        ("", "NUL character"),
        ("Three.", None),
    ]


def test_a_line_too_long_to_hold_is_passed_over() -> None:
    chunks = [b"one\n", b"x" * 80, b"x" * 80 + b"\ntwo", b"\n"]
    lines = list(read_lines(chunks, "", max_bytes=100))
    assert [(line.number, line.text) for line in lines] == [(1, "one"), (2, ""), (3, "two")]
    assert lines[1].problem == "line too long: 160 bytes, at most 100 are read"


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    [line] = read_lines([b"\xef\xbb\xbf{}"], "")
    assert line.text == "{}"


def test_passages_that_are_short_or_one_long_word_are_skipped_with_their_text(tmp_path: Path) -> None:
    path = write(tmp_path / "web/a.jsonl", {"text": "tiny"}, {"text": "a " + "x" * 30 + " b"})
    config = CorpusConfig(paths=(str(path),), max_tokens=25, min_characters=5)
    texts = list(read_corpus(list_files(config), config, len))
    assert [(text.text, text.skipped) for text in texts] == [
        ("tiny", "short passage: fewer than 5 characters at web/a.jsonl#1"),
        ("a", "short passage: fewer than 5 characters at web/a.jsonl#2"),
        ("x" * 30, "long word: 30 characters without a space at web/a.jsonl#2"),
        ("b", "short passage: fewer than 5 characters at web/a.jsonl#2"),
    ]


# a corpus without a readable document


def test_a_sound_corpus_is_looked_at_only_up_to_its_first_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"broken", {"text": PAGE})
    config = CorpusConfig(paths=(str(path), str(tmp_path)))
    require_readable(list_files(config), config)


def test_no_readable_document_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    write(tmp_path / "web/a.jsonl", {"body": PAGE, "id": 1}, b"broken", {"body": PAGE, "id": 2})
    config = CorpusConfig(paths=(str(tmp_path),))
    with pytest.raises(CorpusError) as error:
        require_readable(list_files(config), config)
    assert "2 x no text field: looked for raw_content, text, content" in str(error.value)
    assert "the record has body, id at web/a.jsonl#1" in str(error.value)
    assert "1 x not JSON" in str(error.value)


def test_a_named_field_that_no_record_has_is_an_error_with_the_fields_there_are(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": PAGE, "id": 1})
    config = CorpusConfig(paths=(str(tmp_path),), text_field="txet")
    with pytest.raises(CorpusError, match="looked for txet, the record has text, id"):
        require_readable(list_files(config), config)


def test_a_file_that_went_away_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": PAGE})
    config = CorpusConfig(paths=(str(path),))
    [file] = list_files(config)
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\.jsonl: cannot be read"):
        list(read_file(file, config, words))


# identities, streaming


def test_ids_are_the_same_in_every_run_and_place_and_duplicates_are_two(tmp_path: Path) -> None:
    lines = [{"text": "one two three. four five six."}] * 2
    first = read(write(tmp_path / "x/web/a.jsonl", *lines), max_tokens=3)
    second = read(write(tmp_path / "y/web/a.jsonl", *lines), max_tokens=3)
    assert [text.text_id for text in first] == [text.text_id for text in second]
    assert len({text.text_id for text in first}) == 4
    # These values are in the output of past runs: changing them makes every resumed run start over.
    assert text_id("web/a.jsonl", 1, 0) == first[0].text_id == 1157777094355765249


@given(st.text(), st.integers(1, 2**37), st.integers(0, 2**26 - 1))
def test_ids_fit_int64_and_differ_within_a_file(name: str, row: int, passage: int) -> None:
    places = list(itertools.product((row, row + 1), {passage, 0, 2**26 - 1}))
    ids = {text_id(name, *place) for place in places}
    assert len(ids) == len(places)
    assert all(0 <= each < 2**63 for each in ids)


def test_max_texts_counts_over_all_files(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", *[{"text": f"{PAGE} {i}"} for i in range(3)])
    assert [text.document.source[-9:] for text in read(tmp_path, max_texts=4)][-1] == "b.jsonl#1"


def test_a_file_is_read_only_as_far_as_requested(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"text": PAGE}] * 20_000)
    config = CorpusConfig(paths=(str(path),))
    [file] = pickle.loads(pickle.dumps(list_files(config)))  # noqa: S301
    calls = 0

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        return words(text)

    assert len(list(itertools.islice(read_file(file, config, count), 3))) == 3
    assert calls == 3


def test_healthy_files_give_the_texts_of_earlier_versions(tmp_path: Path) -> None:
    """Ids, texts, origins and order: rows of past runs hold them."""
    rows = [
        {
            "text": f"Page {n}.\n"
            + " ".join(("river", "é", "日本", "bread")[k % 4] for k in range(n * 7 % 150)),
            "url": f"http://x.example/{n}",
            "title": f"T {n}" if n % 2 else None,
            "date": f"{2000 + n % 20}-01-02",
            "metadata": {"url": "http://m.example", "tags": [n]},
        }
        for n in range(700)
    ]
    lines = [json.dumps(row).encode() for row in rows]
    folder = tmp_path / "healthy"
    write(folder / "a.jsonl", *lines)
    data = (folder / "a.jsonl").read_bytes()
    (folder / "b.json.gz").write_bytes(
        gzip.compress(data[: len(data) // 3]) + gzip.compress(data[len(data) // 3 :])
    )
    (folder / "c.jsonl.zst").write_bytes(compress_zstandard(data))
    (folder / "d.txt").write_text("\r\n\r\n".join(str(row["text"]) for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "e.parquet", row_group_size=300)
    pq.write_table(pa.Table.from_pylist(rows), folder / "f.parquet", use_dictionary=False, compression="zstd")
    write(
        folder / "g.ndjson",
        b"",
        b"{broken",
        b"[1]",
        b'{"text": "caf\xe9"}',
        {"text": " "},
        {"no": 1},
        lines[0],
    )
    digest = hashlib.sha256()
    texts = read(folder, max_tokens=64)
    for text in texts:
        digest.update(repr((text.text_id, text.text, text.document, text.skipped)).encode())
    assert (len(texts), digest.hexdigest()[:32]) == (9_048, "9083968cdf9d7b5a9819a88c0ec72ac0")
