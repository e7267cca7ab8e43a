"""Files of weights: whole, cut, changed, and what a manifest says about them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic_core import to_jsonable_python
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.pipeline.finetuning.inputs import base_model
from tools_service.base.checkpoints import load_model, require_whole
from tools_service.base.errors import ConfigurationError
from tools_service.base.weights import (
    INDEX,
    WEIGHTS,
    WeightsError,
    file_states,
    listed_files,
    model_digest,
    require_headers,
    require_unchanged,
    weight_files,
)

pytestmark = pytest.mark.unit

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file of weights."""
    return base_model(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def sharded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several files with an index."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("weights") / "sharded"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(weight_files(folder)) > 2
    return folder


def with_manifest(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    states = file_states(folder, [path.name for path in folder.iterdir()])
    (folder / "manifest.json").write_text(json.dumps({"files": to_jsonable_python(states)}))
    return folder


def some_weights(folder: Path) -> Path:
    return weight_files(folder)[-1]


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    for file in weight_files(folder):
        weights = load_file(file)
        if NORM in weights:
            change(weights)
            save_file(weights, file, metadata={"format": "pt"})


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def value(number: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights[NORM].__setitem__(3, number)


def narrow(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = weights[NORM][:-1].clone()


def empty(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = torch.zeros(0)


def half_nan(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = torch.full_like(weights[NORM], torch.nan, dtype=torch.bfloat16)


# What is done to a folder, and what is said of it.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: some_weights(folder).unlink(), "safetensors|no file"),
    "empty file": (lambda folder: cut(some_weights(folder), 0), "safetensors"),
    "cut in the header": (lambda folder: cut(some_weights(folder), 0.001), "safetensors"),
    "cut in half": (lambda folder: cut(some_weights(folder), 0.5), "safetensors"),
    "last byte cut": (lambda folder: cut(some_weights(folder), 0.9999), "safetensors"),
    "text": (lambda folder: some_weights(folder).write_text("no weights"), "safetensors"),
    "a Git LFS pointer": (
        lambda folder: some_weights(folder).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "safetensors",
    ),
    "a folder": (lambda folder: make_folder(some_weights(folder)), "safetensors"),
    "no tensor": (lambda folder: edit(folder, lambda weights: weights.pop(NORM)), NORM),
    "narrow tensor": (lambda folder: edit(folder, narrow), NORM),
    "empty tensor": (lambda folder: edit(folder, empty), NORM),
    "NaN": (lambda folder: edit(folder, value(float("nan"))), f"{NORM} holds numbers that are not finite"),
    "infinite": (lambda folder: edit(folder, value(float("inf"))), f"{NORM} holds numbers that are not"),
    "minus infinite": (lambda folder: edit(folder, value(float("-inf"))), f"{NORM} holds numbers that"),
    "NaN in bfloat16": (lambda folder: edit(folder, half_nan), f"{NORM} holds numbers that are not finite"),
}
DAMAGED_INDEX: dict[str, tuple[Callable[[Path], object], str]] = {
    "index cut": (lambda folder: cut(folder / INDEX, 0.5), "index"),
    "index empty": (lambda folder: cut(folder / INDEX, 0), "index"),
    "index of something else": (lambda folder: (folder / INDEX).write_text("[1]"), "index"),
    "index without names": (lambda folder: (folder / INDEX).write_text('{"weight_map": 3}'), "index"),
    "index nested deeply": (lambda folder: (folder / INDEX).write_text("[" * 100_000), "index"),
    "index names another file": (
        lambda folder: edit_index(folder, lambda names: names.update({NORM: "model-00099.safetensors"})),
        "model-00099",
    ),
    "index names a tensor that no file has": (
        lambda folder: edit_index(folder, lambda names: names.update(more=min(names.values()))),
        "more",
    ),
    "index missing": (lambda folder: (folder / INDEX).unlink(), "safetensors|no file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_never_whole(base: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    act, named = DAMAGE[damage]
    require_whole(AutoModelForCausalLM, str(folder), "output")
    act(folder)
    with pytest.raises(ConfigurationError, match=rf"^output .*({named})") as caught:
        require_whole(AutoModelForCausalLM, str(folder), "output")
    assert str(caught.value).count("\n") < 3


@pytest.mark.parametrize("damage", DAMAGE | DAMAGED_INDEX)
def test_a_damaged_checkpoint_in_parts_is_never_whole(sharded: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    act, named = (DAMAGE | DAMAGED_INDEX)[damage]
    require_whole(AutoModelForCausalLM, str(folder), "output")
    act(folder)
    with pytest.raises(ConfigurationError, match=rf"^output .*({named}|safetensors)"):
        require_whole(AutoModelForCausalLM, str(folder), "output")


@pytest.mark.parametrize("kind", ["base", "sharded"])
@pytest.mark.parametrize(
    "damage", ["no weights", "empty file", "cut in half", "last byte cut", "flipped", "NaN"]
)
def test_a_folder_that_differs_from_its_manifest_is_not_loaded(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, damage: str
) -> None:
    folder = with_manifest(request.getfixturevalue(kind), tmp_path / "model")
    load_model(AutoModelForCausalLM, str(folder), "model.path", dtype="float32")
    if damage == "flipped":
        flip(some_weights(folder))
    else:
        DAMAGE[damage][0](folder)
    with pytest.raises(WeightsError, match="safetensors"):
        require_unchanged(folder, listed_files(folder))
    with pytest.raises(ConfigurationError, match=r"^model\.path .*safetensors"):
        load_model(AutoModelForCausalLM, str(folder), "model.path", dtype="float32")


def test_other_files_may_be_edited_but_not_lost(base: Path, tmp_path: Path) -> None:
    folder = with_manifest(base, tmp_path / "model")
    copied = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    require_unchanged(copied, listed_files(copied))
    tokenizer = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": "{{ x }}"}))
    require_unchanged(copied, listed_files(copied))
    cut(copied / "tokenizer_config.json", 0)
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json is empty"):
        require_unchanged(copied, listed_files(copied))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing"):
        require_unchanged(copied, listed_files(copied))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '{"files": 3}', '{"files": [{"name": 1}]}', "{}"]
)
def test_a_manifest_without_a_list_of_files_lists_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert listed_files(tmp_path) == []


def test_headers_tell_missing_and_cut_weights(base: Path, sharded: Path, tmp_path: Path) -> None:
    for source in (base, sharded):
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        require_headers(folder)
        cut(some_weights(folder), 0.9)
        with pytest.raises(WeightsError, match="cut off or damaged"):
            require_headers(folder)
    with pytest.raises(WeightsError, match="missing"):
        require_headers(tmp_path)


def test_the_digest_follows_what_the_model_is(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    assert model_digest(folder) == model_digest(base)
    (folder / "README.md").write_text("about")
    (folder / "manifest.json").write_text("{}")
    assert model_digest(folder) == model_digest(base)
    edit(folder, value(0.5))
    assert model_digest(folder) != model_digest(base)
