"""Folders that hold no checkpoint: one sentence says what they hold instead, and what to do."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.engine.loading import load_language_model, require_model
from tools_service.base.checkpoints import load_tokenizer
from tools_service.base.errors import ConfigurationError
from tools_service.base.model_folder import may_be_hub_name

pytestmark = pytest.mark.unit

Damage = Callable[[Path], Any]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "whole"
    causal_lm("llama", 420).save_pretrained(folder)
    tokenizer("bytes").save_pretrained(folder)
    return folder


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def configure(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def only(name: str, content: str = "{}") -> Damage:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        if name:
            (folder / name).write_text(content)

    return damage


def cut(share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])

    return damage


def sharded(index: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / INDEX).write_text(index)

    return damage


def all_of(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def to_int8(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {name: tensor.to(torch.int8) for name, tensor in tensors.items()}


def poison(name: str, value: float) -> Damage:
    return weights(lambda tensors: tensors[name].view(-1)[:1].fill_(value))


NORM = "model.layers.0.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, "no such folder"),
    "empty": (only(""), "the folder is empty"),
    "gguf": (only("m.gguf", "GGUF"), "GGUF files, .*save_pretrained"),
    "adapter": (only("adapter_config.json"), r"an adapter with no weights and no adapter_model\.safetensors"),
    "adapter beside weights": (write("adapter_config.json", "{}"), "an adapter .*beside"),
    "no config": (remove("config.json"), r"no config\.json"),
    "config is empty": (write("config.json", ""), r"config\.json is not JSON"),
    "config is cut off": (write("config.json", "{"), r"config\.json is not JSON"),
    "config is nested": (write("config.json", "[" * 100_000), r"config\.json is not JSON"),
    "config is a list": (write("config.json", "[]"), r"config\.json holds no JSON object"),
    "config is null": (write("config.json", "null"), r"config\.json holds no JSON object"),
    "config says nothing": (write("config.json", "{}"), "no model_type"),
    "model_type is a number": (configure(model_type=1), "no model_type"),
    "model_type is unknown": (configure(model_type="nonsense"), "nonsense"),
    "model has own code": (configure(model_type="x", auto_map={"AutoModelForCausalLM": "a.B"}), "x"),
    "another kind": (
        write("config.json", '{"model_type": "clip"}'),
        "Unrecognized",
    ),
    "encoder-decoder": (write("config.json", '{"model_type": "bart"}'), "encoder-decoder"),
    "default configuration": (write("config.json", '{"model_type": "llama"}'), "files hold"),
    "state space": (write("config.json", '{"model_type": "mamba"}'), "keep a state|no weights|files hold"),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        r"no tokenizer; copy tokenizer\.json",
    ),
    "tokenizer is a list": (write("tokenizer.json", "[]"), r"tokenizer\.json holds no JSON object"),
    "tokenizer is cut off": (write("tokenizer.json", "{"), r"tokenizer\.json is not JSON"),
    "tokenizer says nothing": (write("tokenizer.json", "{}"), "cannot load it"),
    "no vocabulary": (remove("tokenizer.json"), "cannot load it"),
    "pointer to weights": (write(WEIGHTS, LFS), r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    "pointer to config": (write("config.json", LFS), r"config\.json is a Git LFS pointer"),
    "pointer to tokenizer": (write("tokenizer.json", LFS), r"tokenizer\.json is a Git LFS pointer"),
    "pointer to a shard": (
        all_of(sharded("{}"), write("model-00001-of-00002.safetensors", LFS)),
        "is a Git LFS pointer",
    ),
    "no weights": (remove(WEIGHTS), r"no weights \(model\.safetensors\)"),
    "pickled weights": (
        all_of(remove(WEIGHTS), write("pytorch_model.bin", "x")),
        r"pickled weights \(\.bin\)",
    ),
    "weights of Flax": (all_of(remove(WEIGHTS), write("flax_model.msgpack", "x")), "Flax"),
    "weights of TensorFlow": (all_of(remove(WEIGHTS), write("tf_model.h5", "x")), "TensorFlow"),
    "another name": (lambda f: (f / WEIGHTS).rename(f / "consolidated.safetensors"), "consolidated"),
    "half": (cut(0.5), "cut off or damaged"),
    "nothing": (cut(0.0), "cut off or damaged"),
    "index is a list": (sharded("[]"), "index"),
    "index is empty": (sharded("{}"), "index"),
    "a shard is missing": (
        sharded('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        "is missing",
    ),
    "no layers": (configure(num_hidden_layers=0), "18 weights have no place"),
    "one layer": (configure(num_hidden_layers=1), "9 weights have no place"),
    "three layers": (configure(num_hidden_layers=3), "no weights for"),
    "narrow": (configure(hidden_size=32), "shape"),
    "few embeddings": (configure(vocab_size=100), "shape|embeddings"),
    "no heads": (configure(num_attention_heads=0), "cannot load it|cannot make"),
    "rotation": (configure(rope_scaling={"rope_type": "odd", "factor": 2.0}), "'odd'"),
    "activation": (configure(hidden_act="nonsense"), "'nonsense'"),
    "GPTQ": (configure(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
    "bitsandbytes": (configure(quantization_config={"load_in_4bit": True}), "quantized"),
    "8 bits": (weights(to_int8), "stored as I8: quantized"),
    "no room": (configure(max_position_embeddings=4), "no room for a call"),
    "NaN": (poison(NORM, float("nan")), rf"{NORM} holds NaN"),
    "infinite": (poison("lm_head.weight", float("inf")), r"lm_head\.weight holds NaN or inf"),
    "one weight more": (weights(lambda t: t.update(extra=torch.ones(2))), "1 weights have no place.*extra"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_holds_no_usable_model_is_refused_in_one_sentence(
    fault: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage, said = FAULTS[fault]
    damage(folder)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_language_model(ModelConfig(path=str(folder), dtype="float32", device="cpu"))
    assert str(caught.value).count("\n") <= 2


def test_a_file_is_no_folder(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path, kind in ((whole / "config.json", "a file"), (tmp_path / "m.gguf", "a GGUF file")):
        with pytest.raises(ConfigurationError, match=f"it is {kind}; name the folder"):
            require_model(ModelConfig(path=str(path)))


def test_what_needs_no_weights_is_refused_before_any_is_read(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / WEIGHTS).unlink()
    require_model(ModelConfig(path=str(folder)))
    configure(vocab_size=100)(folder)
    with pytest.raises(ConfigurationError, match=r"\d+ tokens, the model 100 embeddings"):
        require_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_constants_that_old_versions_saved_are_no_weights(name: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    weights(lambda tensors: tensors.update({name: torch.ones(8)}))(folder)
    load_language_model(ModelConfig(path=str(folder), dtype="float32", device="cpu"))


def test_half_precision_is_no_quantization(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    weights(lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))(folder)
    load_language_model(ModelConfig(path=str(folder), dtype="float32", device="cpu"))


@pytest.mark.parametrize(
    ("path", "is_name"),
    [
        ("gpt2", True),
        ("EleutherAI/gpt-j-6b", True),
        ("facebook/nllb-200-distilled-600M", True),
        ("_private.model/v1.0", True),
        ("runs/model", False),  # there is a folder runs
        ("runs", False),
        ("file", False),
        ("", False),
        (".", False),
        ("..", False),
        ("./model", False),
        ("~/model", False),
        ("/model", False),
        ("/models/model", False),
        ("owner/", False),
        ("owner/name/", False),
        ("owner/name/more", False),
        ("owner//name", False),
        ("owner\\name", False),
        ("a model", False),
        ("owner/name\n", False),
        ("https://huggingface.co/owner/name", False),
        ("s3://bucket/model", False),
    ],
)
def test_what_may_be_a_name_on_the_hub(
    path: str, is_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert may_be_hub_name(path) == is_name


def test_a_hub_that_cannot_be_reached_is_one_sentence_and_no_warnings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(*_: Any, **__: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files\nSee: …")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", connect)
    with pytest.raises(
        ConfigurationError, match="the hub cannot be reached for a model of that name"
    ) as error:
        load_tokenizer("owner/name", "model.path")
    assert "\n" not in str(error.value)
    assert not caplog.records
