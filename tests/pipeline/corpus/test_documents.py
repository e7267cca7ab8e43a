"""Files of strangers: one bad value costs itself, never the text, the file or the run."""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.config import CorpusConfig
from pipeline.base.records import TEXT_SCHEMA, Text
from pipeline.corpus.files import CorpusError, CorpusFile, list_files
from pipeline.corpus.texts import read_corpus

pytestmark = pytest.mark.unit

PAGE = "Anna sold 12 jars of honey and later 30 more."
URL = "http://honey.example/2021/03/05/jars.html"


def read(path: Path, **settings: Any) -> list[Text]:
    """The texts; they can be written, and every reason ends in its source."""
    config = CorpusConfig(paths=(str(path),), min_characters=1, **settings)
    texts = list(read_corpus(list_files(config), config, lambda text: len(text.split())))
    rows = [{"text_id": text.text_id, "text": text.text, "skipped": text.skipped} for text in texts]
    pa.Table.from_pylist(rows, TEXT_SCHEMA)
    for text in texts:
        shown = [text.document.source, text.document.url or "", text.document.title or "", text.skipped or ""]
        assert all(len(string.splitlines()) <= 1 and len(string) < 5_000 for string in shown)
        assert text.skipped is None or text.skipped.endswith(f" at {text.document.source}")
    return texts


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def dates(values: list[int], type_: pa.DataType) -> pa.Array:
    integers = pa.int32() if type_.bit_width == 32 else pa.int64()
    return pa.array(values, integers).view(type_)


ODD_COLUMNS: dict[str, pa.Array] = {
    "date32 before year 1": dates([-800_000], pa.date32()),
    "date32 after year 9999": dates([2**31 - 1], pa.date32()),
    "date64": dates([-(2**62)], pa.date64()),
    **{f"timestamp {unit} 2^62": dates([2**62], pa.timestamp(unit)) for unit in ("ms", "us")},
    **{f"timestamp {unit} -2^63": dates([-(2**63)], pa.timestamp(unit)) for unit in ("ms", "us")},
    "unknown time zone": dates([0], pa.timestamp("us", "Mars/Olympus")),
    "time zone at the end of time": dates([253402300799 * 10**6], pa.timestamp("us", "Asia/Tokyo")),
    "time": dates([1], pa.time64("us")),
    "duration": dates([2**62], pa.duration("us")),
    "decimal": pa.array([10**37], pa.decimal128(38)),
    "no UTF-8": pa.array([b"caf\xe9"]).view(pa.string()),
    "bytes": pa.array([b"\xff\xfe"]),
    "list": pa.array([["2021-03-05"]]),
    "struct": pa.array([{"a": 1}]),
    "struct of null": pa.array([{"b": None}]),
    "map": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    "boolean": pa.array([True]),
    "not a number": pa.array([float("nan")]),
    "nulls": pa.nulls(1),
    "no date": pa.array(["yesterday"]),
    "no day": pa.array(["2021-02-30"]),
    "digits of another script": pa.array(["２０２１-03-05"]),
}


@pytest.mark.parametrize("field", ["date", "title", "metadata.date"])
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_an_odd_optional_value_of_parquet_costs_itself_only(tmp_path: Path, name: str, field: str) -> None:
    values = pa.concat_arrays([ODD_COLUMNS[name], pa.nulls(1, ODD_COLUMNS[name].type)])
    outer, _, inner = field.partition(".")
    column = pa.StructArray.from_arrays([values, pa.array([URL] * 2)], [inner, "url"]) if inner else values
    path = parquet(tmp_path / "a.parquet", {"text": [PAGE, PAGE], outer: column})
    texts = read(path)
    assert [(text.text, text.skipped) for text in texts] == [(PAGE, None)] * 2
    assert [text.document.date for text in texts] == [None] * 2
    assert [text.document.url for text in texts] == [URL if inner else None] * 2


@pytest.mark.parametrize(
    "value",
    [
        "NaN", "Infinity", "-1e999", "9" * 5_000, "[]", "{}", "true", "null", '"\\ud800"', '"\\u0000"', '""',
        '"2021-02-30"', '"0000-00-00"', '"-0001-01-01"', "2" * 400, '"\\u001b[31m"', '"\\n"', "[[[]]]",
        '"' + "x" * 100_000 + '"', '"\xe9"', '"\\ud83d\\ude00"', "{\"url\": 1}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["date", "title", "url", "metadata", "te\\ud800xt"])
def test_an_odd_optional_value_of_json_costs_itself_only(tmp_path: Path, value: str, field: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f'{{"text": {json.dumps(PAGE)}, "{field}": {value}}}\n'.encode("latin-1"))
    [text] = read(path)
    assert (text.text, text.skipped, text.document.date) == (PAGE, None, None)


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("2021-03-05T07:08:09Z", "2021-03-05"),
        ("2021-03-05 07:08", "2021-03-05"),
        ("2021-03-05x", "2021-03-05"),
        ("20210305", "2021-03-05"),
        ("20210305T070809Z", "2021-03-05"),
        ("20210305070809", "2021-03-05"),
        ("2021-W09-5", "2021-03-05"),
        ("1511121256", None),  # seconds, milliseconds and microseconds since 1970
        ("1512120674000", None),
        ("1512120674000000", None),
        ("2021030507", None),
        ("\u0662\u0660\u0662\u0661-03-05", None),
    ],
)
def test_the_day_of_a_string(tmp_path: Path, value: str, date: str | None) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": PAGE, "date": value, "url": URL.replace("http", "HTTP")}))
    [text] = read(path)
    assert text.document.date == date
    assert text.document.url == URL.replace("http", "HTTP")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_a_pointer_of_git_lfs_is_no_document(tmp_path: Path, name: str) -> None:
    content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"
    (tmp_path / name).write_text(content)
    [text] = read(tmp_path / name)
    assert "git lfs pull" in str(text.skipped)


def test_year_one_is_an_iso_date(tmp_path: Path) -> None:
    columns = {"text": [PAGE] * 2, "date": [datetime.date(1, 1, 1), datetime.date(999, 2, 3)]}
    path = parquet(tmp_path / "a.parquet", columns)
    assert [text.document.date for text in read(path)] == ["0001-01-01", "0999-02-03"]


WITH_URL: dict[str, dict[str, Any]] = {
    "CCNet": {"raw_content": PAGE, "url": URL, "date_download": "2020-03-29"},
    "C4": {"text": PAGE, "url": URL, "timestamp": "2019-04-25T12:57:54Z"},
    "FineWeb": {"text": PAGE, "url": URL, "id": "<urn:uuid:0>", "dump": "CC-MAIN-2021-10"},
    "RefinedWeb": {"content": PAGE, "url": URL},
    "Dolma": {"id": "x", "text": PAGE, "metadata": {"url": URL}},
    "Dolma, id": {"id": URL, "text": PAGE},
    "RedPajama": {"text": PAGE, "meta": {"url": URL, "timestamp": "2020-03-29"}},
    "RedPajama, JSON": {"text": PAGE, "meta": json.dumps({"url": URL})},
    "metadata, JSON": {"text": PAGE, "metadata": json.dumps({"url": URL})},
    "OSCAR": {"content": PAGE, "warc_headers": {"warc-target-uri": URL, "warc-date": "2020-03-29"}},
    "OSCAR, metadata": {"content": PAGE, "metadata": {"warc_headers": {"warc-target-uri": URL}}},
    "OSCAR, meta": {"content": PAGE, "meta": {"warc_headers": {"warc-target-uri": URL}}},
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", WITH_URL)
def test_the_formats_of_other_projects(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text(json.dumps(WITH_URL[name]))
    else:
        pq.write_table(pa.Table.from_pylist([WITH_URL[name]]), path)
    [text] = read(path)
    assert (text.text, text.document.url, text.document.date) == (PAGE, URL, None)


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "zstd"}])
def test_every_type_of_string_is_a_text(tmp_path: Path, type_: pa.DataType, options: dict[str, Any]) -> None:
    column = pa.array([PAGE.encode(), "日本".encode(), None, b""])
    column = column if pa.types.is_binary(type_) else column.cast(pa.string()).cast(type_)
    texts = read(parquet(tmp_path / "a.parquet", {"text": column}, **options))
    assert [text.text for text in texts] == [PAGE, "日本", "", ""]
    assert [str(text.skipped).partition(":")[0] for text in texts[2:]] == ["no text field", "empty document"]


def test_metadata_that_is_a_map(tmp_path: Path) -> None:
    metadata = pa.array([[("url", URL), ("title", "Jars")], None], pa.map_(pa.string(), pa.string()))
    texts = read(parquet(tmp_path / "a.parquet", {"text": [PAGE] * 2, "metadata": metadata}))
    assert [(text.document.url, text.document.title) for text in texts] == [(URL, "Jars"), (None, None)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"text": PAGE}, indent=1),
        json.dumps([{"text": PAGE}], indent=1),
        json.dumps([{"text": PAGE}, {"text": PAGE}]),
        '[{"text": "x"},\n{"text": "y"}]',
        '\ufeff[\n{"text": "x"}]',
        '\n{ \n"text": "x"}',
    ],
)
def test_json_that_is_no_json_lines_is_one_reason_that_says_how_to_convert_it(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    [text] = read(tmp_path / "a.json")
    assert "JSON lines are wanted" in str(text.skipped)
    assert "jq -c" in str(text.skipped)


@pytest.mark.parametrize(
    "line", ["{", "[", '{"text": "x', "[1", "}", "\ufeff{", '{"text": "x"}}', "[[", '{"a', "{]"]
)
def test_a_broken_first_line_costs_itself_only(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n" + json.dumps({"text": PAGE}), encoding="utf-8")
    broken, text = read(tmp_path / "a.jsonl")
    assert broken.skipped is not None
    assert text.text == PAGE


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"x" * 10**7: 1},
        lambda: {"k\n\x1b": 1},
        lambda: {f"{'k' * 1_000}{n}": n for n in range(1_000)},
        lambda: {"text": [0] * 10**6},
        lambda: {"text": PAGE, "title": "t" * 10**7, "url": "http://" + "u" * 10**7},
    ],
)
def test_reasons_titles_and_urls_are_bounded(tmp_path: Path, make: Callable[[], object]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(make()))
    assert len(read(tmp_path / "a.jsonl")) == 1


def test_damage_in_a_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    texts = [f"{PAGE} {number}" for number in range(300)]
    path = parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 8] = bytes(8)
    path.write_bytes(content)
    found = read(path)
    assert [text.text for text in found if text.skipped is None] == texts[:100] + texts[200:]
    [damage] = [text for text in found if text.skipped]
    assert str(damage.skipped).startswith("damaged file: ")
    assert "nothing from this row to row 200 can be read at" in str(damage.skipped)
    assert damage.document.source.endswith("#101")


BIG = "a" * (8 * 2**20)
BOMBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one page": ({"text": [BIG] * 40}, {"use_dictionary": False}),
    "a dictionary": ({"text": [BIG] * 40}, {"dictionary_pagesize_limit": 2**30}),
    "shared prefixes": (
        {"text": [BIG] * 40},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    ),
    "a title": ({"text": [PAGE], "title": [BIG * 16]}, {"use_dictionary": False}),
    "a list": (
        {"text": [PAGE], "date": pa.ListArray.from_arrays([0, 2**25], pa.nulls(2**25, pa.int8()))},
        {},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_parquet_made_to_fill_the_memory(tmp_path: Path, name: str) -> None:
    columns, options = BOMBS[name]
    path = parquet(tmp_path / "a.parquet", columns, compression="zstd", **options)
    assert path.stat().st_size < 40_000
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        texts = read(path)
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 150 * 2**20
    assert all(text.text == PAGE or "too l" in str(text.skipped) for text in texts)


class Failing:
    """A file of the system that raises at the second read."""

    closed = False

    def __init__(self, data: bytes, error: Exception) -> None:
        self.data, self.error, self.position, self.reads = data, error, 0, 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise self.error
        part = self.data[self.position :][: None if size < 0 else size]
        self.position += len(part)
        return part

    def seek(self, to: int, whence: int = 0) -> int:
        self.position = (0, self.position, len(self.data))[whence] + to
        return self.position

    def tell(self) -> int:
        return self.position

    def readable(self) -> bool:
        return True

    seekable = readable

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
        MemoryError("no memory"),
        pa.ArrowMemoryError("malloc of size 64 failed"),
    ],
)
def test_memory_and_disk_are_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, {"text": [os.urandom(100).hex() for _ in range(5_000)]})
    else:
        path.write_bytes((json.dumps({"text": PAGE}) + "\n").encode() * 5_000)
    data = path.read_bytes()
    for method in ("open_stream", "open_random"):
        monkeypatch.setattr(CorpusFile, method, lambda self: pa.PythonFile(Failing(data, error), "r"))
    with pytest.raises(CorpusError, match=rf"{name}: cannot be read after row \d+: ") as raised:
        read(path)
    assert ("not enough memory" in str(raised.value)) == isinstance(error, MemoryError)
