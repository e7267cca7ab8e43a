"""The index's folder: what is built, when it is built again, and what its manifest says."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from tests.tools_service.encyclopedia import ARTICLES, config, indexed, lines, written
from tools_service.base.locks import OutputInUseError, output_lock
from tools_service.base.ownership import NotOwnError
from tools_service.config import WikiSearchConfig
from tools_service.contract.tool import ToolInput
from tools_service.indexing import build as build_module
from tools_service.indexing import merging, sources
from tools_service.indexing.build import build_index, ensure_index
from tools_service.indexing.sources import SourceError
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.index import read_manifest
from tools_service.retrieval.retriever import Retriever
from tools_service.tools.wikisearch import WikiSearch

pytestmark = pytest.mark.unit


@pytest.fixture
def made(tmp_path: Path) -> WikiSearchConfig:
    return indexed(tmp_path)


def written_ns(made: WikiSearchConfig) -> int:
    return (made.index / "manifest.json").stat().st_mtime_ns


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_an_index_is_built_once_and_again_when_the_source_changed(made: WikiSearchConfig) -> None:
    source, built = Path(made.source[0]), written_ns(made)
    os.utime(source, (1, 1))  # the same content, checked out again
    ensure_index(made)
    assert written_ns(made) == built

    source.write_text(source.read_text().replace("rivers", "rapids"))  # the same size
    ensure_index(made)
    assert "rapids" in (WikiSearch(made)([ToolInput("spin")])[0].result or "")


def test_other_settings_build_it_again(made: WikiSearchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_module.SETTINGS, "k1", 1.2)
    ensure_index(made)
    assert read_manifest(made.index)["settings"]["k1"] == 1.2


def test_an_index_that_cannot_be_read_is_built_again(made: WikiSearchConfig) -> None:
    (made.index / "manifest.json").write_text("{broken")
    ensure_index(made)
    assert read_manifest(made.index)["articles"] == 4


def test_who_has_the_old_index_open_keeps_it(made: WikiSearchConfig) -> None:
    search = WikiSearch(made)
    Path(made.source[0]).write_bytes(lines([("Otter", "A swimming animal.")]))
    ensure_index(made)
    assert (search([ToolInput("lighthouse")])[0].result or "").startswith("Lighthouse > ")


def test_the_manifest_counts_lines_articles_passages_and_what_was_skipped(tmp_path: Path) -> None:
    wiki = tmp_path / "wiki"
    wiki.mkdir()
    broken = b'{broken\n\xff\xfe\n\n{"title": "x"}\n{broken\n'
    (wiki / "a.jsonl").write_bytes(lines(ARTICLES) + broken)
    (wiki / "b.jsonl.gz").write_bytes(gzip.compress(lines([("Long", "word " * 400)])))
    (wiki / "c.jsonl").touch()
    (wiki / "notes.md").write_text("not an article")
    manifest = build_index(config(wiki, tmp_path / "index"), progress=False)
    assert (manifest["articles"], manifest["passages"]) == (5, 4 + 3)
    assert manifest["skipped"] == {
        "not JSON": 2, "not UTF-8": 1, "empty line": 1, "no text": 1, "empty file": 1
    }  # fmt: skip
    assert manifest["lines"] == manifest["articles"] + sum(manifest["skipped"].values())
    assert [one["name"] for one in manifest["source"]] == ["a.jsonl", "b.jsonl.gz", "c.jsonl"]
    skipped = [json.loads(line) for line in (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == sum(manifest["skipped"].values())
    assert {"file": str(wiki / "a.jsonl"), "line": 5, "reason": "not JSON"} in skipped


def test_the_index_does_not_depend_on_how_the_source_was_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles = [(f"Title {n}", f"common w{n % 7} w{n % 31} only{n}. " * (n % 40 + 1)) for n in range(150)]
    whole = indexed(tmp_path, articles)
    cut = config(Path(whole.source[0]), tmp_path / "cut")
    monkeypatch.setattr(sources.read_blocks, "__defaults__", (2_000,))
    monkeypatch.setattr("tools_service.indexing.merging._RANGE_POSTINGS", 100)
    build_index(cut, progress=False)
    assert contents(cut.index) == contents(whole.index)


def test_the_disk_holds_the_passages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.read_blocks, "__defaults__", (1,))  # a segment for each line
    copy, sizes = shutil.copyfileobj, []

    def copied(source: BinaryIO, target: BinaryIO, length: int) -> None:
        copy(source, target, length)
        target.flush()
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("passages.bin")))

    monkeypatch.setattr(merging.shutil, "copyfileobj", copied)
    made = indexed(tmp_path, ARTICLES * 50)
    whole = (made.folder / "passages.bin").stat().st_size
    assert len(sizes) == 2 * 4 * 50
    assert max(sizes) < 1.05 * whole


def test_terms_that_come_often_are_counted_in_full(tmp_path: Path) -> None:
    counts = [1, 300, 70_000]  # of one, two and four bytes
    rows = "".join(f"{n}\t{'word ' * count}\ttitle\n" for n, count in enumerate(counts))
    (tmp_path / "rows.tsv").write_text(rows)
    made = config(tmp_path / "rows.tsv", tmp_path / "index")
    build_index(made, progress=False)
    lengths = [count + 1 for count in counts]
    norms = [0.9 * (0.6 + 0.4 * length / (sum(lengths) / 3)) for length in lengths]
    expected = [
        math.log(1 + 0.5 / 3.5) * count / (norm + count) for count, norm in zip(counts, norms, strict=True)
    ]
    assert Bm25(made.folder).postings("word")[1].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("already_open", [0, 400])
def test_more_segments_than_files_may_be_open(
    already_open: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.read_blocks, "__defaults__", (1,))  # a block for each line
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as files:
        for _ in range(already_open):
            files.enter_context(Path(os.devnull).open("rb"))
        open_now = sum(1 for _ in Path("/proc/self/fd").iterdir())  # those of other tests, too
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 60, before[1]))
        try:
            made = indexed(tmp_path, ARTICLES * 50)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read_manifest(made.index)["passages"] == 200


def test_the_arrays_are_opened_by_memory_map(made: WikiSearchConfig) -> None:
    opened = [value for value in vars(Bm25(made.index)).values() if isinstance(value, np.ndarray)]
    assert len(opened) == 4
    assert all(isinstance(array.base, np.memmap) for array in opened)


def test_a_source_without_articles_is_an_error_and_nothing_half_built_remains(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(SourceError, match=r"no article in .*empty\.jsonl, only \{'no text': 1\}"):
        ensure_index(config(tmp_path / "empty.jsonl", tmp_path / "index"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


def test_passages_without_a_single_term_can_be_indexed(tmp_path: Path) -> None:
    made = indexed(tmp_path, [("?", "! ."), ("the", "of a")])
    assert Retriever(made).search(["anything"], 3) == [[]]


def test_a_folder_that_is_no_index_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(NotOwnError, match=r"not empty and not an index.*thesis\.txt"):
        ensure_index(config(written(tmp_path / "a.jsonl"), precious))
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_an_index_of_the_format_before_file_states_is_recognised_as_current(made: WikiSearchConfig) -> None:
    """Manifests have always recorded name, size, mtime_ns and sha256 of each source file."""
    file = Path(made.source[0])
    entry = {
        "name": file.name,
        "size": file.stat().st_size,
        "mtime_ns": file.stat().st_mtime_ns,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert read_manifest(made.index)["source"] == [entry]
    built = written_ns(made)
    os.utime(file, (1, 1))
    ensure_index(made)
    assert written_ns(made) == built


def test_a_source_with_another_file_is_built_again(made: WikiSearchConfig) -> None:
    written(Path(made.source[0]).with_name("more.jsonl"), [("Otter", "A swimming animal.")])
    both = made.model_copy(
        update={"source": (*made.source, str(Path(made.source[0]).with_name("more.jsonl")))}
    )
    ensure_index(both)
    assert read_manifest(made.index)["articles"] == 5


MANIFESTS = {
    "an annotation": {"state": "finished", "config": {}, "corpus": {}, "sessions": []},
    "C*": {"config": {}, "sources": [], "texts": 3, "calls": 4},
    "a fine-tuned model": {"config": {}, "data": "", "best": {}, "texts": {}},
    "an extension": {"manifest_version": 3, "name": "x"},
    "an object without names": {},
    "a list": [],
    "a number": 3,
    "null": None,
    "a string": "index",
    "settings alone": {"settings": {"format": 2}},
    "a source alone": {"source": []},
    "another settings": {"settings": 1, "source": 2},
}


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("files", [("model.safetensors",), ("rows/0.parquet", "rows/1.parquet"), ()])
@pytest.mark.parametrize("build", [build_index, ensure_index])
def test_a_folder_with_the_manifest_of_something_else_is_kept(
    tmp_path: Path, kind: str, files: tuple[str, ...], build: Callable[[WikiSearchConfig], object]
) -> None:
    folder = tmp_path / "theirs"
    (folder / "rows").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFESTS[kind]))
    for name in files:
        (folder / name).write_bytes(b"weights")
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(NotOwnError, match="theirs is not empty and not an index"):
        build(config(written(tmp_path / "a.jsonl"), folder))
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "theirs"]


@pytest.mark.parametrize("name", ["thesis.txt", "vectors/thesis.npy", "notes/", "passages.bin.bak"])
def test_what_a_user_added_to_an_index_keeps_it(made: WikiSearchConfig, name: str) -> None:
    added = made.index / name
    added.parent.mkdir(exist_ok=True)
    added.mkdir() if name.endswith("/") else added.write_text("years of work")
    Path(made.source[0]).write_bytes(lines([("Otter", "A swimming animal.")]))
    for build in (ensure_index, build_index):
        with pytest.raises(NotOwnError, match=name.split("/", maxsplit=1)[0]):
            build(made)
    assert added.exists()
    assert read_manifest(made.index)["articles"] == 4


def test_an_index_of_the_first_format_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    (folder / "bm25").mkdir(parents=True)
    for name in ("bm25/data.csc.index.npy", "bm25/vocab.index.json", "offsets.npy", "passages.bin"):
        (folder / name).write_bytes(b"old")
    old = {"settings": {"k1": 1.2}, "source": [], "articles": 1, "passages": 1, "terms": 1, "bm25s": "0.3"}
    (folder / "manifest.json").write_text(json.dumps(old))
    ensure_index(config(written(tmp_path / "a.jsonl"), folder))
    assert read_manifest(folder)["articles"] == 4
    assert not (folder / "bm25").exists()


KILLED = """
import os, sys
from pathlib import Path
from tools_service.config import WikiSearchConfig
from tools_service.indexing import build
build.merge = lambda segments, folder: os.kill(os.getpid(), 9)
build.build_index(WikiSearchConfig(source=(sys.argv[1],), index=Path(sys.argv[2])), progress=False)
"""


def test_the_next_build_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    source, index = written(tmp_path / "a.jsonl"), tmp_path / "index"
    theirs = tmp_path / ".index.backup.part"
    theirs.mkdir()
    command = [sys.executable, "-c", KILLED, str(source), str(index)]
    assert subprocess.run(command, check=False).returncode == -9
    left = {path.name for path in tmp_path.iterdir()} - {"a.jsonl", theirs.name}
    assert len(left) == 2, "a staging folder and the lock"
    ensure_index(config(source, index))
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs.name, "a.jsonl", "index"]


def test_a_second_build_is_refused_and_a_second_user_waits(tmp_path: Path) -> None:
    made = config(written(tmp_path / "a.jsonl"), tmp_path / "index")
    with output_lock(made.index):
        with pytest.raises(OutputInUseError, match="is writing here"):
            build_index(made, progress=False)
        waiting = threading.Thread(target=ensure_index, args=(made,))
        waiting.start()
        build_module._build_index(made, 0, progress=False)
        built = written_ns(made)
    waiting.join()
    assert written_ns(made) == built
