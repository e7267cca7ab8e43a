"""An index built by actors on Ray is the index built here, byte for byte, also when an actor dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools_service.encoders import bert
from tests.tools_service.encyclopedia import config, indexed
from tools_service.config import EncoderConfig, WikiSearchConfig
from tools_service.indexing import sources
from tools_service.indexing.build import build_index
from tools_service.indexing.parallel import map_in_order
from tools_service.retrieval.index import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]

WORDS = [f"w{n}" for n in range(50)]
ARTICLES = [(f"Title {n}", " ".join(WORDS[n * m % 50] for m in range(n + 1))) for n in range(120)]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_parallel_index_is_the_serial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.read_blocks, "__defaults__", (3_000,))
    encoder = EncoderConfig(model=bert(tmp_path / "bert", WORDS), max_tokens=64, device="cpu")
    serial = indexed(tmp_path, ARTICLES, retriever="dense", encoder=encoder)
    changes = {"retriever": serial.retriever, "encoder": encoder}
    parallel: WikiSearchConfig = config(Path(serial.source[0]), tmp_path / "parallel", **changes)
    build_index(parallel, workers=2, progress=False)
    assert contents(parallel.index) == contents(serial.index)
    first, second = read_manifest(serial.index), read_manifest(parallel.index)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert len(contents(serial.index)) == 12


class Mortal:
    """Squares numbers; dies of the first 5 it sees, once."""

    def __init__(self, scene: Path) -> None:
        self._scene = scene

    def __call__(self, number: int) -> int:
        if number == 5 and not self._scene.exists():
            self._scene.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number


def maker(scene: Path) -> Callable[[], Callable[[int], int]]:
    return lambda: Mortal(scene)


def test_results_come_in_order_also_when_an_actor_dies(tmp_path: Path) -> None:
    numbers = ((n,) for n in range(20))
    found = list(map_in_order(maker(tmp_path / "died"), numbers, workers=2))
    assert found == [n * n for n in range(20)]
    assert (tmp_path / "died").exists()
