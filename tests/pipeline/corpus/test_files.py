"""Files, folders, globs and URIs become corpus files with stable names."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.base.config import CorpusConfig
from pipeline.corpus.files import CorpusError, CorpusFile, _resolve, find_files, list_files
from pipeline.corpus.texts import text_id

pytestmark = pytest.mark.unit


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for name in ("b.jsonl.gz", "a.jsonl", "2019-09/c.parquet", "2019-18/c.parquet", "2019-18/d.TXT"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    for name in (".hidden.jsonl", "_SUCCESS", "_temporary/x.jsonl", "README.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no corpus")
    return root


def names(*paths: object) -> list[str]:
    return [file.name for file in list_files(CorpusConfig(paths=tuple(map(str, paths))))]


EVERYTHING = [
    "2019-09/c.parquet",
    "2019-18/c.parquet",
    "2019-18/d.TXT",
    "corpus/a.jsonl",
    "corpus/b.jsonl.gz",
]


def test_a_folder_is_read_recursively_in_order_of_the_paths(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(corpus) == EVERYTHING
    assert "not read: 1 x file of another type (README.md)" in caplog.text


def test_a_file_has_the_same_name_however_it_is_reached(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    ways = [
        corpus / "a.jsonl",
        "a.jsonl",
        "./a.jsonl",
        "../corpus/a.jsonl",
        "a.*",
        f"file://{corpus}/a.jsonl",
    ]
    assert [names(way) for way in ways] == [["corpus/a.jsonl"]] * len(ways)
    assert names(*ways) == ["corpus/a.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", EVERYTHING[3:4]),
        ("**/*.parquet", EVERYTHING[:2]),
        ("2019-*", EVERYTHING[:3]),
        ("2019-1[0-9]/*", EVERYTHING[1:3]),
        ("?.jsonl*", EVERYTHING[3:]),
    ],
)
def test_globs(corpus: Path, pattern: str, expected: list[str]) -> None:
    assert names(corpus / pattern) == expected


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("{}")
    assert len(names(tmp_path / "a[1].jsonl")) == 1


def test_equal_ends_of_paths_are_told_apart(tmp_path: Path) -> None:
    for site in ("x", "y"):
        (tmp_path / site / "data").mkdir(parents=True)
        (tmp_path / site / "data" / "train.jsonl").write_text("{}")
    assert names(tmp_path) == ["x/data/train.jsonl", "y/data/train.jsonl"]


def test_a_uri_that_only_fsspec_knows() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/crawl/web/a.jsonl", b"{}\n")
    assert names("memory://crawl") == names("memory://crawl/*/a.jsonl") == ["web/a.jsonl"]
    file = pickle.loads(pickle.dumps(list_files(CorpusConfig(paths=("memory://crawl/web/a.jsonl",)))[0]))  # noqa: S301
    assert file.size == 3
    with file.open_stream() as stream:
        assert stream.read() == b"{}\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "absent: no such file or folder"),
        ("absent/*.jsonl", "absent/*.jsonl: no such file or folder"),
        ("corpus/*.csv", "no corpus file found"),
        ("corpus/README.md", "README.md: unknown file type; supported are .json"),
        ("gopher://a/b.jsonl", "gopher://a/b.jsonl: cannot be opened: "),
        ("hdfs://nowhere.invalid/x.jsonl", "hdfs://nowhere.invalid/x.jsonl: cannot be opened: "),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_names_it(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(corpus.parent)
    with pytest.raises(CorpusError) as error:
        names("corpus/a.jsonl", path)
    assert message in str(error.value)


def test_no_path_at_all() -> None:
    with pytest.raises(CorpusError, match=r"corpus\.paths"):
        names()


@pytest.mark.parametrize(
    ("name", "format_", "compression"),
    [
        ("en_head_0000.json.gz", "jsonl", "gz"),
        ("c4.jsonl.zst", "jsonl", "zst"),
        ("x.NDJSON", "jsonl", ""),
        ("x.txt.GZ", "text", "gz"),
        ("part.0.parquet", "parquet", ""),
    ],
)
def test_the_format_is_the_names(name: str, format_: str, compression: str) -> None:
    file = CorpusFile(f"a/{name}", f"/a/{name}", "", 0)
    assert (file.format, file.compression) == (format_, compression)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen files in three folders; two of them have names that only their folders tell apart."""
    root = tmp_path_factory.mktemp("many")
    for number in range(12):
        path = root / "abc"[number % 3] / f"{number % 11:02}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n" * number)
    (root / "a" / "b").mkdir()
    (root / "a" / "b" / "00.jsonl").write_text("{}\n")
    return root


@given(of=st.integers(1, 13), backwards=st.booleans())
def test_slices_are_disjoint_and_together_everything(many: Path, of: int, backwards: bool) -> None:
    """Whatever the order of the paths; the files, and so the text ids, are the same."""
    paths = tuple(str(many / name) for name in ("abc"[::-1] if backwards else "abc"))
    whole = find_files(CorpusConfig(paths=paths)).files
    slices = [list_files(CorpusConfig(paths=paths, slice=f"{i}/{of}")) for i in range(of)]
    together = [file for slice_ in slices for file in slice_]
    assert len(together) == len(whole) == 13
    assert set(together) == set(whole)
    assert {text_id(file.name, 1, 0) for file in together} == {text_id(file.name, 1, 0) for file in whole}
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    reversed_ = CorpusConfig(paths=paths[::-1], slice=f"0/{of}")
    assert list_files(reversed_) == slices[0]


def test_more_slices_than_files_are_refused(many: Path) -> None:
    with pytest.raises(CorpusError, match=r"slice = 2/14: a slice has whole files, and there are only 13"):
        list_files(CorpusConfig(paths=(str(many),), slice="2/14"))


@pytest.mark.parametrize("given_", ["4/4", "0/0", "-1/4", "1", "1/4/2", "a/b"])
def test_a_slice_that_cannot_be_is_refused(given_: str) -> None:
    with pytest.raises(ValidationError, match="slice"):
        CorpusConfig(slice=given_)


@pytest.mark.parametrize("path", ["", " \t", "a\0b", "a\udc80b"])
def test_a_path_that_no_file_can_have_is_refused_with_the_configuration(path: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        names(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file://", "names nothing"),
        ("s3://", "names nothing"),
        ("memory://", "names nothing"),
        ("~nobody-of-that-name/x", "cannot be opened: "),
        ("x" * 5_000, "cannot be opened: "),
        ("*" + "x" * 5_000, "cannot be opened: "),
        ("\x1bred", r"\x1bred: no such file"),
        ("corpus/a.jsonl/b", "cannot be opened: "),
        ("corpus/pipe.jsonl", "pipe.jsonl: no regular file"),
        ("corpus/null.jsonl", "null.jsonl: no regular file"),
        ("corpus/gone.jsonl", "gone.jsonl: no such file or folder"),
        ("corpus/self.jsonl", "cannot be opened: "),
        ("pipes", "not read: 1 x no regular file, but a FIFO, socket or device (x.jsonl)"),
        ("corpus/p*.jsonl", "not read: 1 x no regular file"),
        ("corpus/[", "no corpus file found"),
        ("memory://nowhere/[1].jsonl", "no such file or folder"),
        ("s3:///", "cannot be opened: "),
        ("://", "names nothing"),
        ("dbfs://x", "cannot be opened: "),
        ("reference://x", "cannot be opened: "),
        ("dir://x", "cannot be opened: "),
    ],
)
def test_a_path_that_cannot_be_is_one_clear_line(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(corpus.parent)
    os.mkfifo(corpus / "pipe.jsonl")
    (corpus.parent / "pipes").mkdir()
    os.mkfifo(corpus.parent / "pipes" / "x.jsonl")
    for name, target in (("null", "/dev/null"), ("gone", "nowhere"), ("self", "self.jsonl")):
        (corpus / f"{name}.jsonl").symlink_to(target)
    with pytest.raises(CorpusError) as error:
        names(path)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 3_000


@pytest.mark.timeout(20)
def test_links_neither_double_nor_hide_a_file(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "0").symlink_to(".")
    (corpus / "0.jsonl").symlink_to("a.jsonl")
    (corpus / "z.jsonl").hardlink_to(corpus / "a.jsonl")
    (corpus / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(corpus / "pipe.jsonl")
    with caplog.at_level(logging.WARNING):
        assert names(corpus) == EVERYTHING
    listing = find_files(CorpusConfig(paths=(str(corpus),)))
    assert [Path(item.path).name for item in listing.left_out] == [
        "0", "0.jsonl", "README.md", "gone.jsonl", "pipe.jsonl", "z.jsonl",
    ]  # fmt: skip
    for item in listing.left_out:
        assert item.reason in caplog.text
        assert Path(item.path).name in caplog.text


def test_a_file_that_two_entries_name_by_other_paths_is_read_once(corpus: Path) -> None:
    (corpus / "link.jsonl").symlink_to("a.jsonl")
    assert names(corpus / "link.jsonl", corpus / "a.jsonl") == ["corpus/link.jsonl"]
    listing = find_files(CorpusConfig(paths=(str(corpus / "link.jsonl"), str(corpus / "a.jsonl"))))
    assert [item.path for item in listing.left_out] == [str(corpus / "a.jsonl")]


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9", b"\xff\xfe", b"a\nb", b"\x1b[2J", b"a b", b"%41", b"#?", "日本".encode(), b"'\"", b"[!a]"],
)
def test_every_file_name_of_the_system_is_read(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name + b".jsonl")
    path.write_bytes(b"{}\n")
    [file] = list_files(CorpusConfig(paths=(str(tmp_path),)))
    assert file.name == f"{tmp_path.name}/{path.name}"
    assert file.label.encode().isascii() or name.isascii() or name == "日本".encode()
    assert text_id(file.name, 1, 0) == text_id(file.name, 1, 0)
    with file.open_stream() as stream:
        assert stream.read() == b"{}\n"


@pytest.mark.parametrize("name", ["a[1]", "[x]", "é ü", "日本", "100%", "a#b", "a+b&c", "a{1}", "a'b"])
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_uris_with_brackets_and_other_scripts(tmp_path: Path, name: str, scheme: str) -> None:
    if scheme == "memory":
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}.jsonl", b"{}\n")
        uri = f"memory://{tmp_path.name}/{name}.jsonl"
    else:
        (tmp_path / f"{name}.jsonl").write_bytes(b"{}\n")
        uri = f"file://{tmp_path}/{name}.jsonl"
    [file] = list_files(CorpusConfig(paths=(uri,)))
    assert file.name == f"{tmp_path.name}/{name}.jsonl"
    with file.open_random() as stream:
        assert stream.read() == b"{}\n"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://b/a[1].jsonl?region=us-east-1", "b/a[1].jsonl"),
        ("s3://b/é ü.jsonl?region=us-east-1", "b/é ü.jsonl"),
        ("s3://b/100%.jsonl?region=us-east-1", "b/100%.jsonl"),
        ("s3://b/a%5B1%5D/é?region=us-east-1", "b/a[1]/é"),
        ("s3://b/a%20b?region=us-east-1", "b/a b"),
        ("gs://b/日本[1].jsonl", "b/日本[1].jsonl"),
    ],
)
def test_the_path_of_a_uri(uri: str, path: str) -> None:
    assert _resolve(uri)[1] == path
