"""`merge-lora`: one model with the numbers of an adapter and its base; nothing else is replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.base.finetune_config import MergeLoraConfig
from pipeline.cli.main import main
from pipeline.finetuning.merge_lora import merge_lora
from tests.pipeline.finetuning.inputs import base_model
from tools_service.base.checkpoints import load_model, load_tokenizer
from tools_service.base.errors import ConfigurationError
from tools_service.base.ownership import NotOwnError

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model, and an adapter that PEFT made for it."""
    base = AutoModelForCausalLM.from_pretrained(base_model(tmp_path / "base"))
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    return tmp_path


def config(folder: Path, **values: str) -> MergeLoraConfig:
    return MergeLoraConfig(adapter=folder / "adapter", output=folder / "merged", **values)


def weights(path: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    model = load_model(AutoModelForCausalLM, str(path), "model.path", dtype=dtype)
    return dict(model.state_dict())


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_merged_model_has_the_numbers_of_the_adapter(folder: Path, dtype: str) -> None:
    (folder / "adapter" / "tools.json").write_text("[]")
    manifest = merge_lora(config(folder, dtype=dtype))
    assert manifest.base == str(folder / "base")
    stored = "float32" if dtype == "auto" else dtype
    expected = weights(folder / "adapter", stored)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
    assert {name: value.dtype for name, value in merged.items()} == {n: v.dtype for n, v in expected.items()}
    assert all(value.equal(merged[name]) for name, value in expected.items())
    assert not weights(folder / "base", stored)["model.layers.0.mlp.up_proj.weight"].equal(
        merged["model.layers.0.mlp.up_proj.weight"]
    )
    assert (folder / "merged" / "tools.json").read_text() == "[]"
    assert not (folder / "merged" / "adapter_config.json").exists()
    shutil.rmtree(folder / "base")
    load_tokenizer(str(folder / "merged"), "model.path")
    weights(folder / "merged")


def test_a_second_run_replaces_the_first_and_damage_is_found(folder: Path) -> None:
    first = merge_lora(config(folder))
    assert merge_lora(config(folder)).files[0].sha256 == first.files[0].sha256
    file = folder / "merged" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match="other content than was written"):
        weights(folder / "merged")
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".part", ".old"))]


def test_a_folder_of_others_is_not_replaced(folder: Path) -> None:
    (folder / "merged").mkdir()
    (folder / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(NotOwnError):
        merge_lora(config(folder))
    assert (folder / "merged" / "notes.txt").read_text() == "mine"


def test_the_command_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(folder / "merged")]
    assert main(["merge-lora", "--adapter", str(folder / "base"), *output]) == 2
    assert "so there is nothing to merge" in capsys.readouterr().err
    assert main(["merge-lora", "--adapter", str(folder / "adapter"), *output, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "base model" in shown
    assert str(folder / "base") in shown
    assert not (folder / "merged").exists()
    assert main(["merge-lora", "--adapter", str(folder / "adapter"), *output]) == 0
    assert capsys.readouterr().out.endswith(f"{folder / 'merged'}\n")
    shutil.rmtree(folder / "base")
    for more in ([], ["--dry-run"]):
        assert main(["merge-lora", "--adapter", str(folder / "adapter"), *output, *more]) == 2
        assert "its base model is missing" in "".join(capsys.readouterr())
