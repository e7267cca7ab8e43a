"""The tokens of C* in files: written once, checked, written again where they are damaged."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fixtures.small_models import tokenizer
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data import token_store
from pipeline.finetuning.data.augmented_files import digest, read_index
from pipeline.finetuning.data.examples import ExampleEncoder, Split
from pipeline.finetuning.data.token_store import TokenStore, TokenStoreError, store_of
from pipeline.finetuning.data.tokenizing import prepare
from pipeline.storage.kinds import FINE_TUNED
from tests.pipeline.finetuning.inputs import configuration, load_examples, rows, write
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import OutputError

pytestmark = pytest.mark.unit

WORDS = tokenizer("pieces")


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    write(tmp_path / "augmented", [rows(20), rows(30)[20:]])
    return configuration(tmp_path, tokens=tmp_path / "tokens", sequence_length=40)


def made(config: FinetuneConfig, words: Any = WORDS) -> TokenStore:
    return prepare(config, words, digest(config.data), read_index(config.data))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each batch that is tokenised."""
    sizes: list[int] = []
    batch = ExampleEncoder.batch

    def counted(self: ExampleEncoder, text_ids: Any, *texts: Any) -> Any:
        sizes.append(len(text_ids))
        return batch(self, text_ids, *texts)

    monkeypatch.setattr(ExampleEncoder, "batch", counted)
    return sizes


def assert_same(split: Split, expected: Split) -> None:
    assert split.counts() == expected.counts()
    for part, other in ((split.train, expected.train), (split.held_out, expected.held_out)):
        assert part.mask_results == other.mask_results
        for field in fields(part):
            if field.name not in ("tokens", "is_result", "starts", "mask_results"):
                assert getattr(part, field.name).tolist() == getattr(other, field.name).tolist()
        for index in range(len(part)):
            assert part[index].tolist() == other[index].tolist()
            assert part.masked(index).tolist() == other.masked(index).tolist()


@pytest.mark.parametrize("overrides", [{}, {"column": "plain"}, {"mask_results": True, "seed": 3}])
def test_a_store_gives_the_examples_that_are_made_in_memory(
    config: FinetuneConfig, overrides: dict[str, Any]
) -> None:
    config = config.model_copy(update=overrides)
    expected = load_examples(config, WORDS)
    assert expected.train.truncated, "some texts are cut"
    assert expected.train.results.any() is np.bool_(config.column == "text")
    assert_same(made(config).split(config), expected)


def test_the_workers_of_a_node_share_the_flat_arrays(config: FinetuneConfig) -> None:
    train = made(config).split(config).train
    for flat in (train.tokens, train.is_result):
        assert isinstance(flat, np.memmap)


def test_kept_tokens_are_not_made_a_second_time(config: FinetuneConfig, encoded: list[int]) -> None:
    """Nor for another run of the same C*: only its data, column, tokenizer and length decide."""
    store = made(config)
    assert sum(encoded) == 30
    other = {"output": config.output / "2", "seed": 4, "held_out": 2, "mask_results": True, "packing": True}
    assert made(config.model_copy(update=other)) == store
    moved = config.data.rename(config.data.with_name("moved"))
    assert made(config.model_copy(update={"data": moved})) == store
    assert sum(encoded) == 30


@pytest.mark.parametrize("other", ["column", "sequence_length", "tokenizer", "data", "tools", "format"])
def test_other_tokens_stand_beside(
    config: FinetuneConfig, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, words = made(config), WORDS
    before = contents(store.folder)
    if other == "tokenizer":
        words = tokenizer("bytes")
    elif other == "data":
        write(config.data / "more", [rows(40)[30:]])
        (config.data / "more" / "manifest.json").unlink()
    elif other == "tools":
        (config.data / "manifest.json").write_text('{"tools": ["Weather"]}')
    elif other == "format":
        monkeypatch.setattr(token_store, "_FORMAT", 999)
    else:
        config = config.model_copy(update={other: "plain" if other == "column" else 50})
    second = made(config, words)
    assert second.folder.parent == store.folder.parent
    assert second != store
    assert contents(store.folder) == before
    assert_same(second.split(config), load_examples(config, words))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)


FILES = ("tokens.bin", "results.bin", "index.npy", "store.json")
DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"{name} cut": lambda folder, name=name: cut(folder / name) for name in FILES},
    **{f"{name} empty": lambda folder, name=name: os.truncate(folder / name, 0) for name in FILES},
    **{f"{name} missing": lambda folder, name=name: (folder / name).unlink() for name in FILES},
    **{f"{name} other bit": lambda folder, name=name: change_a_bit(folder / name) for name in FILES[:3]},
    "store.json of text": lambda folder: (folder / "store.json").write_text("{"),
    "all but store.json missing": lambda folder: [(folder / name).unlink() for name in FILES[:3]],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_written_again(
    config: FinetuneConfig, damage: str, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    store = made(config)
    before = contents(store.folder)
    DAMAGE[damage](store.folder)
    with caplog.at_level(logging.WARNING):
        assert made(config) == store
    assert f"{store.folder}: tokenised again, because" in caplog.text
    assert contents(store.folder) == before
    assert sum(encoded) == 60
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_files_of_others_are_not_removed(config: FinetuneConfig) -> None:
    store = made(config)
    (store.folder / "letters.txt").write_text("dear")
    cut(store.folder / "tokens.bin")
    with pytest.raises(ConfigurationError, match=r"^tokens: .*letters\.txt"):
        made(config)
    shutil.rmtree(store.folder)
    store.folder.mkdir()
    (store.folder / "letters.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match=r"^tokens: .*letters\.txt"):
        made(config)
    assert (store.folder / "letters.txt").read_text() == "dear"


def test_a_file_in_place_of_the_folder_is_named(config: FinetuneConfig) -> None:
    assert config.tokens is not None
    config.tokens.write_text("dear")
    with pytest.raises(OutputError, match=str(config.tokens)):
        made(config)
    assert config.tokens.read_text() == "dear"


def test_a_process_that_was_killed_leaves_nothing_half_written(config: FinetuneConfig) -> None:
    """Killed after the first file of C*; the next start writes everything, and removes the rest."""
    code = (
        "import os, sys\n"
        "from bench.fixtures.small_models import tokenizer\n"
        "from pipeline.base.finetune_config import FinetuneConfig\n"
        "from pipeline.finetuning.data.examples import ExampleEncoder\n"
        "from tests.pipeline.finetuning.data.test_token_store import made\n"
        "rows, calls = ExampleEncoder.rows, []\n"
        "def killed(*arguments):\n"
        "    calls.append(1)\n"
        "    return rows(*arguments) if len(calls) == 1 else os.kill(os.getpid(), 9)\n"
        "ExampleEncoder.rows = killed\n"
        "made(FinetuneConfig.model_validate_json(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    assert subprocess.run(command, cwd=Path(__file__).parents[4], check=False).returncode == -9
    assert config.tokens is not None
    [left, *locks] = sorted(config.tokens.iterdir(), key=lambda path: path.is_file())
    assert left.name.endswith(".part")
    assert (left / "tokens.bin").exists()
    assert not (left / "store.json").exists()
    assert [path.suffix for path in locks] == [".lock"]
    store = made(config)
    assert list(config.tokens.iterdir()) == [store.folder]
    assert_same(store.split(config), load_examples(config, WORDS))


def test_a_full_disk_is_named_and_leaves_nothing(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        return _FullFile() if path.name == "results.bin" else opened(path, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left"):
        made(config)
    assert config.tokens is not None
    assert list(config.tokens.iterdir()) == []


class _FullFile(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_of_several_runs_at_once_one_writes(config: FinetuneConfig, encoded: list[int]) -> None:
    """The others wait for it. (The lock is the system's, and keeps threads apart as it does processes.)"""
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(made, [config] * 3))
    assert stores == [stores[0]] * 3
    assert sum(encoded) == 30
    assert stores[0].problem() is None
    assert config.tokens is not None
    assert list(config.tokens.iterdir()) == [stores[0].folder]


def test_without_a_folder_the_tokens_go_with_the_checkpoints(config: FinetuneConfig) -> None:
    config = config.model_copy(update={"tokens": None})
    store = store_of(config, WORDS, digest(config.data))
    assert store.folder.parent == config.output / "checkpoints" / "tokens"
    assert not config.output.exists()
    (config.output / "checkpoints").mkdir(parents=True)
    (config.output / "checkpoints" / "run.json").write_text(json.dumps({"data": ""}))
    made(config)
    left = store.folder.with_name(f".{store.folder.name}.0123abcd.part")
    shutil.copytree(store.folder, left)
    assert list(FINE_TUNED.foreign(config.output)) == []


def test_a_store_that_is_gone_is_named_by_a_worker(config: FinetuneConfig) -> None:
    store = made(config)
    shutil.rmtree(store.folder)
    with pytest.raises(TokenStoreError, match=rf"^{store.folder}: cannot be read"):
        store.split(config)


def test_c_star_that_changes_meanwhile_is_not_mixed(config: FinetuneConfig) -> None:
    index, data = read_index(config.data), digest(config.data)
    (config.data / "part-00001.parquet").unlink()
    with pytest.raises(OutputError, match="C\\* changed while it was tokenised"):
        prepare(config, WORDS, data, index)
    assert config.tokens is not None
    assert list(config.tokens.iterdir()) == []
