"""An index from an object store, a real S3 server on loopback, or from another folder, copied to a disk."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

from tests.tools_service.encyclopedia import ARTICLES, indexed
from tools_service.base.errors import ConfigurationError
from tools_service.base.ownership import NotOwnError
from tools_service.commands import parse
from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput, ToolUnavailableError
from tools_service.indexing.build import build_index, ensure_index
from tools_service.retrieval.index import IndexFolderError, read_manifest
from tools_service.retrieval.local_copy import StoredIndex
from tools_service.tools.registry import files_read, require_available, with_absolute_paths
from tools_service.tools.wikisearch import WikiSearch

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """host:port of an S3 server with the bucket `indexes`."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "someone")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        connection(f"{host}:{port}").create_dir("indexes")
        yield f"{host}:{port}"
        server.stop()


def connection(server: str) -> S3FileSystem:
    return S3FileSystem(
        endpoint_override=server, scheme="http", region="us-east-1", allow_bucket_creation=True
    )


def uri(server: str, name: str) -> str:
    return f"s3://indexes/{name}?endpoint_override={server}&scheme=http"


def upload(folder: Path, server: str, name: str) -> str:
    """Copy an index into the bucket, the manifest last."""
    target = connection(server)
    files = sorted(
        (file for file in folder.rglob("*") if file.is_file()), key=lambda f: f.name == "manifest.json"
    )
    for file in files:
        copy_files(
            str(file),
            f"indexes/{name}/{file.relative_to(folder).as_posix()}",
            source_filesystem=LocalFileSystem(),
            destination_filesystem=target,
        )
    return uri(server, name)


def ask(config: WikiSearchConfig, text: str = "spin") -> str | None:
    return WikiSearch(config)([ToolInput(text)])[0].result


def at(location: str | Path, disk: Path, **changes: Any) -> WikiSearchConfig:
    return WikiSearchConfig(index=location, local_copy=disk, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_an_index_in_a_store_is_copied_once_and_again_when_it_changed(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = indexed(tmp_path)
    location, disk = upload(built.folder, server, "once"), tmp_path / "disk"
    with caplog.at_level(logging.INFO, "tools_service"), ThreadPoolExecutor(4) as replicas:
        tools = list(replicas.map(WikiSearch, [at(location, disk)] * 4))  # one copies, the others wait
    assert caplog.text.count("copying the index") == 1
    [copy] = disk.iterdir()
    assert contents(copy) == contents(built.folder)
    assert {tool([ToolInput("spin")])[0].result for tool in tools} == {ask(built)}

    used = copy.stat().st_ino
    assert ask(at(location, disk)) == ask(built)
    assert copy.stat().st_ino == used

    changed = indexed(tmp_path, [("Spinning wheel", "Another text."), *ARTICLES[1:]])
    upload(changed.folder, server, "once")
    assert ask(at(location, disk)) == ask(changed) != tools[0]([ToolInput("spin")])[0].result
    assert copy.stat().st_ino != used
    assert list(disk.iterdir()) == [copy]  # nor a lock, nor the old one


def test_a_shared_folder_and_a_file_uri_are_copied_too(tmp_path: Path) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    for location in (built.folder, built.folder.as_uri()):
        assert ask(at(location, disk)) == ask(built)
    copies = sorted(disk.iterdir())
    assert len(copies) == 2  # a location, a folder
    assert all(contents(copy) == contents(built.folder) for copy in copies)

    (copies[0] / "scores.npy").write_bytes(b"")  # a disk that was full, or another's hand
    for location in (built.folder, built.folder.as_uri()):
        assert ask(at(location, disk)) == ask(built)
    assert all(contents(copy) == contents(built.folder) for copy in copies)


def test_a_copy_that_was_killed_is_made_again(tmp_path: Path) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    code = (
        "import sys, time; from pathlib import Path; from tools_service.retrieval import local_copy\n"
        "local_copy.StoredIndex._copy_file = lambda self, name, target: (target.touch(), time.sleep(600))\n"
        "local_copy.StoredIndex.at(Path(sys.argv[1])).copy_below(Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(built.folder), str(disk)])
    deadline = time.monotonic() + 60
    while not list(disk.glob(".index-*.part/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(disk.glob(".index-*.part/*"))
    assert ask(at(built.folder, disk)) == ask(built)
    assert [path.name[:6] for path in disk.iterdir()] == ["index-"]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    ask(at(built.folder, disk))
    [copy] = disk.iterdir()
    (copy / "notes.txt").write_text("mine")
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(NotOwnError, match=r"local_copy: .* holds notes\.txt"):
        ask(at(built.folder, disk))
    assert (copy / "notes.txt").read_text() == "mine"


def test_no_room_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(IndexFolderError, match=r"local_copy: the index .* takes 0\.0 GB.*0\.0 GB free"):
        ask(at(built.folder, disk))
    assert not list(disk.iterdir())


def test_an_index_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    copy_file = StoredIndex._copy_file

    def touched(self: StoredIndex, name: str, target: Path) -> None:
        copy_file(self, name, target)
        if name == "scores.npy":
            manifest = json.loads((built.folder / "manifest.json").read_text())
            (built.folder / "manifest.json").write_text(json.dumps(manifest | {"seconds": -1}))

    monkeypatch.setattr(StoredIndex, "_copy_file", touched)
    with pytest.raises(IndexFolderError, match="changed while it was copied; start again"):
        ask(at(built.folder, disk))
    assert not list(disk.iterdir())


def test_a_file_that_goes_while_it_is_copied_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, disk = indexed(tmp_path), tmp_path / "disk"
    copy_file = StoredIndex._copy_file

    def removed(self: StoredIndex, name: str, target: Path) -> None:
        if name == "scores.npy":
            (built.folder / name).unlink()
        copy_file(self, name, target)

    monkeypatch.setattr(StoredIndex, "_copy_file", removed)
    with pytest.raises(IndexFolderError, match=r"index cannot be copied: .*scores\.npy.* Check the path"):
        ask(at(built.folder, disk))
    assert not list(disk.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {**files, "../scores.npy": 3}, r"lists '\.\./scores\.npy', no file of an index"),
        (lambda _: {}, "lists no files; build the index again"),
        (lambda files: files | {"scores.npy": 3}, r"scores\.npy has [\d,]+ bytes, the manifest says 3; copy"),
        (
            lambda files: files | {"vectors/probe.npy": 3},
            r"vectors/probe\.npy is missing, the manifest says 3",
        ),
    ],
)
def test_an_index_that_is_not_whole_is_refused_before_it_is_copied(
    server: str, tmp_path: Path, change: Any, message: str
) -> None:
    built = indexed(tmp_path)
    manifest = read_manifest(built.folder)
    manifest["files"] = change(manifest["files"])
    (built.folder / "manifest.json").write_text(json.dumps(manifest))
    location = upload(built.folder, server, tmp_path.name)
    for search in (at(location, tmp_path / "disk"), at(built.folder, tmp_path / "disk")):
        with pytest.raises(IndexFolderError, match=message):
            ask(search)
    with pytest.raises(IndexFolderError, match=message):  # before tools start
        require_available(["WikiSearch"], ToolsConfig(wikisearch=at(location, tmp_path / "disk")))
    assert not list((tmp_path / "disk").glob("*"))


def test_no_index_and_no_server_are_said_in_a_sentence(server: str, tmp_path: Path) -> None:
    for location, message in (
        (uri(server, "nothing"), "no index at s3://indexes/nothing"),
        (uri(server, "").replace("indexes", "nowhere"), "no index at s3://nowhere"),
        (f"{(tmp_path / 'none').as_uri()}", "no index at file:///"),
        (
            "nosuch://bucket/index",
            r"tools\.wikisearch\.index = nosuch://bucket/index: .* Give a folder, or a URI",
        ),
        (uri("127.0.0.1:1", "index"), r"cannot be read: .* Check the path, the credentials and the endpoint"),
        ("s3://key:word@bucket/index", r"tools\.wikisearch\.index: the URI holds a password"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            require_available(["WikiSearch"], ToolsConfig(wikisearch=at(location, tmp_path / "disk")))
    with pytest.raises(ToolUnavailableError, match="nothing to search"):
        require_available(["WikiSearch"], ToolsConfig(wikisearch=at(tmp_path / "none", tmp_path / "disk")))


def test_an_index_in_a_store_is_not_built_but_compared_with_the_source(server: str, tmp_path: Path) -> None:
    built = indexed(tmp_path)
    stored = built.model_copy(update={"index": upload(built.folder, server, "compared")})
    with pytest.raises(ConfigurationError, match=r"index = s3://.*: an index is built in a folder; name one"):
        build_index(stored, workers=0)
    ensure_index(stored)
    Path(built.source[0]).write_text("other")
    with pytest.raises(IndexFolderError, match="was built from another source or with other settings"):
        ensure_index(stored)


def test_the_options() -> None:
    arguments = ["--wikisearch.index", "s3://bucket/index", "--wikisearch.local-copy", "disk"]
    config: Any = parse(["call", "WikiSearch", "spin", *arguments])
    search = with_absolute_paths(config.config).of("WikiSearch")
    assert isinstance(search, WikiSearchConfig)
    assert (search.index, search.local_copy) == ("s3://bucket/index", Path("disk").resolve())
    assert WikiSearchConfig.model_validate_json(search.model_dump_json()) == search
    assert files_read(config.config, ["WikiSearch"]) == ["s3://bucket/index"]
    folder: Any = parse(["call", "WikiSearch", "spin", "--wikisearch.index", "runs/i"])
    assert folder.config.of("WikiSearch").index == Path("runs/i")
    with pytest.raises(ConfigurationError, match=r"index.* = 's3:bucket': .*write s3://bucket/path"):
        parse(["call", "WikiSearch", "spin", "--wikisearch.index", "s3:bucket"])


def test_an_index_at_a_uri_is_copied_to_the_cache_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLFORMER_CACHE", str(tmp_path / "cache"))
    built = indexed(tmp_path)
    assert ask(WikiSearchConfig(index=built.folder.as_uri())) == ask(built)
    assert [path.name[:6] for path in (tmp_path / "cache").iterdir()] == ["index-"]
