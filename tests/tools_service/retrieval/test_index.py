"""An index folder that cannot be opened, or is damaged, says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools_service.encyclopedia import indexed
from tools_service.config import WikiSearchConfig
from tools_service.indexing.build import ensure_index
from tools_service.retrieval.index import (
    FORMAT,
    INDEX_FILES,
    MANIFEST,
    IndexFolderError,
    check_manifest,
    read_manifest,
)
from tools_service.retrieval.retriever import Retriever

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no index at .*python -m tools_service index"),
        ("{broken", "cannot be read"),
        ('{"settings": 1}', "cannot be read"),
        ('{"settings": {"format": 1}}', "another version"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(IndexFolderError, match=message):
        Retriever(WikiSearchConfig(index=tmp_path))


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": lambda path: _cut(path, 0),
    "halved": lambda path: _cut(path, path.stat().st_size // 2),
    "without its last byte": lambda path: _cut(path, path.stat().st_size - 1),
    "with a byte more": lambda path: path.write_bytes(path.read_bytes() + b"x") and None,
    "missing": Path.unlink,
    "a folder": _folder,
}


@pytest.fixture
def made(tmp_path: Path) -> WikiSearchConfig:
    return indexed(tmp_path)


def as_of_an_earlier_version(made: WikiSearchConfig) -> None:
    """Its manifest records no sizes."""
    path = made.index / MANIFEST
    content = json.loads(path.read_text())
    del content["files"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_damaged_file_is_named(made: WikiSearchConfig, name: str, damage: str, recorded: bool) -> None:
    if not recorded:
        as_of_an_earlier_version(made)
        assert Retriever(made).search(["lighthouse"], 1)[0][0].passage == 2
    DAMAGES[damage](made.index / name)
    with pytest.raises(IndexFolderError, match=rf"{name} is damaged .*build the index again") as refused:
        Retriever(made)
    assert len(str(refused.value)) < 600
    if damage == "halved":
        ensure_index(made)
        assert Retriever(made).search(["lighthouse"], 1)[0][0].passage == 2


@pytest.mark.parametrize("name", [name for name in INDEX_FILES if name.endswith("npy")])
def test_an_array_with_a_damaged_header_or_of_another_type_is_named(
    made: WikiSearchConfig, name: str
) -> None:
    path = made.index / name
    whole = path.read_bytes()
    for at in (0, 6, 8, 12, 22, 40):  # magic, version, length of the header, header
        _flip(path, at)
        with pytest.raises(IndexFolderError, match=rf"{name} is damaged"):
            Retriever(made)
        path.write_bytes(whole)
    as_of_an_earlier_version(made)
    for other in (np.zeros((2, 2)), np.zeros(5, dtype=np.int16), np.array(5), np.array(["a"])):
        np.save(path, other)
        with pytest.raises(IndexFolderError, match=rf"{name} is damaged"):
            Retriever(made)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(IndexFolderError, match=rf"{name} is damaged"):
        Retriever(made)


def test_files_of_another_index_are_noticed(made: WikiSearchConfig, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = indexed(tmp_path / "more", [("Otter", "A swimming animal of rivers.")])
    as_of_an_earlier_version(made)
    for name in INDEX_FILES:
        whole = (made.index / name).read_bytes()
        shutil.copyfile(other.index / name, made.index / name)
        with pytest.raises(IndexFolderError, match="is damaged"):
            Retriever(made)
        (made.index / name).write_bytes(whole)
    assert Retriever(made).search(["lighthouse"], 1)[0][0].passage == 2


@pytest.mark.parametrize("name", ["passages.npy", "terms.npy", "starts.npy", "postings.npy"])
def test_impossible_values_are_an_error_that_names_the_index(made: WikiSearchConfig, name: str) -> None:
    values = np.load(made.index / name)
    values[len(values) // 2 :] += 2**30
    if name != "postings.npy":
        values[-1] -= 2**30
    np.save(made.index / name, values)
    with suppress(IndexFolderError):  # and no other error
        for hits in Retriever(made).search(["lighthouse", "fly", "rivers"], 1):
            for hit in hits:
                Retriever(made).passage(hit.passage)


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | changes


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda content: [content],
    "null": lambda _: None,
    "a number": lambda _: 3,
    "a string": lambda _: "index",
    "no settings": lambda content: {k: v for k, v in content.items() if k != "settings"},
    "no source": lambda content: {k: v for k, v in content.items() if k != "source"},
    "no passages": lambda content: {k: v for k, v in content.items() if k != "passages"},
    "no terms": lambda content: {k: v for k, v in content.items() if k != "terms"},
    "settings of another type": changed(settings=[1]),
    "source of another type": changed(source="wiki"),
    "a source without a size": changed(source=[{"name": "a"}]),
    "NaN passages": changed(passages=float("nan")),
    "infinite terms": changed(terms=float("inf")),
    "negative passages": changed(passages=-1),
    "passages as text": changed(passages="many"),
    "half a passage": changed(passages=1.5),
    "sizes as a list": changed(files=[1]),
    "a size as text": changed(files={"terms.bin": "big"}),
    "a negative size": changed(files={"terms.bin": -1}),
}
BYTES = {
    "nothing": b"",
    "half": b'{"settings": {"form',
    "not UTF-8": b'{"settings": "\xff"}',
    "UTF-16": '{"settings": 1}'.encode("utf-16"),
    "deep": b"[" * 200_000,
    "NUL": b"\0" * 100,
    "60 MB": b'{"settings": "' + b"x" * 60_000_000 + b'"}',
    "too long": b" " * (65 * 2**20),
}


@pytest.mark.parametrize("kind", [*MANIFESTS, *BYTES])
def test_a_damaged_manifest_is_named_and_the_index_built_again(made: WikiSearchConfig, kind: str) -> None:
    path = made.index / MANIFEST
    if kind in BYTES:
        path.write_bytes(BYTES[kind])
    else:
        path.write_text(json.dumps(MANIFESTS[kind](json.loads(path.read_text()))))
    with pytest.raises(IndexFolderError, match=r"manifest\.json cannot be read") as refused:
        Retriever(made)
    assert len(str(refused.value)) < 600
    assert "pydantic" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind in BYTES if kind != "60 MB"])  # that one is JSON
def test_an_index_whose_manifest_was_damaged_is_built_again(made: WikiSearchConfig, kind: str) -> None:
    (made.index / MANIFEST).write_bytes(BYTES[kind])
    ensure_index(made)
    assert read_manifest(made.index)["passages"] == 4


def test_an_index_may_have_files_of_more_than_two_gigabytes() -> None:
    """Wikipedia's passages are 15 GB."""
    content = {
        "settings": {"format": FORMAT},
        "source": [],
        "passages": 22_885_005,
        "terms": 2_333_342,
        "files": {"passages.bin": 14_961_735_483},
    }
    assert check_manifest(lambda: content, "index")["files"] == content["files"]
