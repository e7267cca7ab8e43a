"""Adapter folders: loaded with their base as PEFT would, refused by name if they ask for anything else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bench.fixtures.small_models import tokenizer
from bench.fixtures.tiny_models import VOCABULARY, tiny_config, tiny_model
from tools_service.base.adapters import base_metadata, model_inputs, read_adapter
from tools_service.base.checkpoints import (
    load_config,
    load_model,
    load_tokenizer,
    require_whole,
    stored_numbers,
)
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

ARCHITECTURES = ("gpt2", "gptj", "gpt_neox", "llama", "qwen3")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def with_adapter(folder: Path, architecture: str, **settings: Any) -> peft.PeftModel:
    """A base model in folder/base, an adapter for it in folder/adapter, and both as PEFT has them."""
    tiny_model(tiny_config(architecture)).save_pretrained(folder / "base")
    tokenizer("bytes").save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32")
    values = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False} | settings
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **values))
    model.save_pretrained(folder / "adapter")
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(2 * 15).view(2, 15) * 7 % VOCABULARY
    with torch.no_grad():
        return model(ids).logits


def load(path: Path, dtype: str = "float32") -> Any:
    return load_model(AutoModelForCausalLM, str(path), "model.path", dtype=dtype).eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    with_adapter(folder, "llama", init_lora_weights=False)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of an adapter and its base that may be damaged; the adapter names the base beside it."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    configure(base_model_name_or_path="../base")(tmp_path / "adapter")
    return tmp_path


def configure(**fields: Any) -> Callable[[Path], Any]:
    def change(adapter: Path) -> None:
        content = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps(content | fields))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def damage(adapter: Path) -> None:
        tensors = load_file(adapter / WEIGHTS)
        change(tensors)
        save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"r": 3, "lora_alpha": 1}])
def test_logits_are_those_of_peft(tmp_path: Path, architecture: str, settings: dict[str, Any]) -> None:
    model = with_adapter(tmp_path, architecture, **settings)
    loaded = load(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert (logits(loaded) - logits(model)).abs().max() > 0.1
    require_whole(AutoModelForCausalLM, str(tmp_path / "adapter"), "model.path")


def test_the_sum_is_float32_and_has_the_type_of_the_weights(folder: Path) -> None:
    adapter, base = load_file(folder / "adapter" / WEIGHTS), load_file(folder / "base" / "model.safetensors")
    loaded = load(folder / "adapter", "bfloat16").state_dict()
    weight = base["model.layers.0.self_attn.q_proj.weight"].bfloat16().float()
    update = 6 / 4 * (adapter[f"{LAYER}.lora_B.weight"] @ adapter[f"{LAYER}.lora_A.weight"])
    assert loaded["model.layers.0.self_attn.q_proj.weight"].equal((weight + update).bfloat16())
    assert {value.dtype for value in loaded.values()} == {torch.bfloat16}


def test_configuration_and_numbers_are_those_of_the_base(folder: Path) -> None:
    adapter, base = str(folder / "adapter"), str(folder / "base")
    assert load_config(adapter, "x").to_dict() == load_config(base, "x").to_dict()
    assert stored_numbers(adapter, "x") == stored_numbers(base, "x")
    assert model_inputs(base) == [base]
    assert [Path(path).resolve() for path in model_inputs(adapter)] == [folder / "adapter", folder / "base"]
    assert model_inputs("owner/model") == ["owner/model"]
    assert read_adapter(base, "x") is None


def test_the_tokenizer_is_the_adapters_own_or_that_of_the_base(folder: Path) -> None:
    adapter = folder / "adapter"
    assert len(load_tokenizer(str(adapter), "x")) == len(tokenizer("bytes"))
    words = copy.deepcopy(tokenizer("bytes"))
    words.add_tokens(["<|new|>"])
    words.save_pretrained(adapter)
    assert len(load_tokenizer(str(adapter), "x")) == len(tokenizer("bytes")) + 1


def test_a_relative_base_counts_from_the_folder_or_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load(folder / "adapter"))
    configure(base_model_name_or_path="base")(folder / "adapter")
    with pytest.raises(
        ConfigurationError, match=r"base_model_name_or_path in its adapter_config\.json 'base'"
    ):
        load(folder / "adapter")  # it could be a name of the hub
    monkeypatch.chdir(folder)
    assert logits(load(folder / "adapter")).equal(expected)


HALF = torch.zeros(4, 32)
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "base is missing": (
        configure(base_model_name_or_path="/no/base"),
        r"its base model is missing: there is no folder \"/no/base\"; write the folder or hub name of the "
        r"base as base_model_name_or_path in .*/adapter/adapter_config\.json",
    ),
    "no base": (configure(base_model_name_or_path=None), r"has no base_model_name_or_path; write"),
    "base is a number": (configure(base_model_name_or_path=3), r"has no base_model_name_or_path; write"),
    "base is itself": (configure(base_model_name_or_path="."), r"is an adapter, too; merge that one first"),
    "base is no model": (configure(base_model_name_or_path="/"), r"adapter_config\.json '/': cannot load"),
    "revision": (configure(revision=7), "revision = 7 is no name of a revision"),
    "no type": (configure(peft_type=None), "peft_type = null is not supported, only LORA is"),
    "another type": (configure(peft_type="IA3"), 'peft_type = "IA3" is not supported'),
    "no rank": (configure(r=None), "r = null is not a number above 0"),
    "rank is text": (configure(r="8"), 'r = "8" is not a number'),
    "rank is zero": (configure(r=0), "r = 0 is not a number above 0"),
    "rank is a fraction": (configure(r=1.5), r"r = 1\.5 is not a whole number"),
    "rank is true": (configure(r=True), "r = true is not a number"),
    "another rank": (configure(r=8), "have the shapes .*, not those of r = 8"),
    "alpha is infinite": (configure(lora_alpha=float("inf")), "lora_alpha = Infinity is not a number"),
    "not JSON": (lambda adapter: (adapter / CONFIG).write_text("{"), r"adapter_config\.json is not JSON"),
    "a list": (
        lambda adapter: (adapter / CONFIG).write_text("[]"),
        r"adapter_config\.json holds no JSON object",
    ),
    "nested": (
        lambda adapter: (adapter / CONFIG).write_text("[" * 99_999),
        r"adapter_config\.json is not JSON",
    ),
    "no weights": (
        lambda adapter: (adapter / WEIGHTS).unlink(),
        r"an adapter with no weights and no adapter_model\.safetensors",
    ),
    "pickled weights": (
        lambda adapter: (adapter / WEIGHTS).rename(adapter / "adapter_model.bin"),
        r"an adapter with pickled weights \(\.bin\) and no adapter_model\.safetensors",
    ),
    "beside weights": (
        lambda adapter: shutil.copy(adapter.parent / "base" / "model.safetensors", adapter),
        "an adapter .*beside the weights of a model",
    ),
    "cut off": (
        lambda adapter: (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9]),
        r"adapter_model\.safetensors is cut off or damaged",
    ),
    "pointer": (
        lambda adapter: (adapter / CONFIG).write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"adapter_config\.json is a Git LFS pointer",
    ),
    "no tensors": (weights(lambda tensors: tensors.clear()), "holds no tensors"),
    "another tensor": (
        weights(lambda tensors: tensors.update({f"{LAYER}.lora_magnitude_vector": torch.zeros(3)})),
        r"the tensor .*q_proj\.lora_magnitude_vector .* is no matrix of LoRA",
    ),
    "half of a layer": (
        weights(lambda tensors: tensors.pop(f"{LAYER}.lora_B.weight")),
        r"one matrix for model\.layers\.0\.self_attn\.q_proj and lacks the other",
    ),
    "a layer that is not there": (
        weights(
            lambda t: t.update(
                {
                    f"base_model.model.model.x.lora_{m}.weight": HALF if m == "A" else HALF.T.contiguous()
                    for m in "AB"
                }
            )
        ),
        r"the base model has no linear layer model\.x,",
    ),
    "a layer that is not linear": (
        weights(
            lambda t: t.update(
                {
                    f"base_model.model.model.norm.lora_{m}.weight": HALF if m == "A" else HALF.T.contiguous()
                    for m in "AB"
                }
            )
        ),
        r"the base model has no linear layer model\.norm,",
    ),
    "another shape": (
        weights(lambda tensors: tensors.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 3)})),
        r"the adapter of model\.layers\.0\.self_attn\.q_proj has the shape \[64, 3\], and .* \[64, 64\]",
    ),
    "quantized": (
        weights(
            lambda tensors: tensors.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)})
        ),
        "is stored as I8: quantized",
    ),
}
# Fields that train, import or fetch something else, as later versions of PEFT may have more of them.
ASKED: dict[str, Any] = {
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "bias": "all",
    "lora_bias": True,
    "rank_pattern": {"(a+)+$": 8},
    "alpha_pattern": {"q_proj": 8},
    "layer_replication": [[0, 2]],
    "megatron_config": {"hidden_size": 1},
    "loftq_config": {"loftq_bits": 4},
    "trainable_token_indices": [1],
    "target_parameters": ["experts"],
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 1},
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "corda_config": {"cache_file": "/etc/passwd"},
    "a_field_of_tomorrow": "evil.module",
    "auto_map": {"AutoModel": "evil.Model"},
}
FAULTS |= {
    f"asks for {name}": (
        configure(**{name: value}),
        rf"adapter_config\.json: {name} = .* is not supported; merge",
    )
    for name, value in ASKED.items()
}
FAULTS |= {
    f"starts from {start}": (
        configure(init_lora_weights=start),
        "init_lora_weights = .* changes the base model",
    )
    for start in ("pissa", "olora", "corda", "loftq", "pissa_niter_4", ["x"])
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_plain_adapter_is_refused_by_name(folder: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(folder / "adapter")
    for action in (
        lambda: load(folder / "adapter"),
        lambda: require_whole(AutoModelForCausalLM, str(folder / "adapter"), "model.path"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            action()
        assert str(caught.value).startswith(f"model.path '{folder / 'adapter'}'")
        assert str(caught.value).count("\n") < 3


def test_what_has_no_effect_is_not_looked_at(folder: Path) -> None:
    expected = logits(load(folder / "adapter"))
    configure(
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        megatron_core="evil.core",
        target_modules="(a+)+$",
        exclude_modules=["q_proj"],
        lora_dropout=0.5,
        fan_in_fan_out=True,
        inference_mode=False,
    )(folder / "adapter")
    assert logits(load(folder / "adapter")).equal(expected)


def test_numbers_that_are_not_finite_are_found(folder: Path) -> None:
    weights(lambda tensors: tensors[f"{LAYER}.lora_A.weight"].view(-1)[:1].fill_(float("nan")))(
        folder / "adapter"
    )
    with pytest.raises(ConfigurationError, match=r"q_proj\.lora_A\.weight holds numbers that are not finite"):
        require_whole(AutoModelForCausalLM, str(folder / "adapter"), "model.path")


def test_a_damaged_base_is_found(folder: Path) -> None:
    (folder / "base" / "model.safetensors").unlink()
    with pytest.raises(
        ConfigurationError, match=r"^model\.path '.*adapter': base_model_name_or_path in its .*weights"
    ):
        load(folder / "adapter")


def record_base(folder: Path) -> None:
    tensors = load_file(folder / "adapter" / WEIGHTS)
    save_file(
        tensors, folder / "adapter" / WEIGHTS, metadata={"format": "pt"} | base_metadata(str(folder / "base"))
    )


def test_another_base_than_the_recorded_one_is_refused(folder: Path) -> None:
    record_base(folder)
    load(folder / "adapter")
    config = folder / "base" / "generation_config.json"
    config.write_text("{}")  # of the base, the weights are compared
    load(folder / "adapter")
    copied = shutil.copytree(
        folder, folder / "copy", copy_function=shutil.copyfile, ignore=lambda *_: ["copy"]
    )
    load(copied / "adapter")
    file = folder / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    message = (
        r"trained on another base model than .*base \(model\.safetensors has other content.*write the folder"
    )
    for action in (load, lambda path: require_whole(AutoModelForCausalLM, str(path), "model.path")):
        with pytest.raises(ConfigurationError, match=message):
            action(folder / "adapter")


@pytest.mark.parametrize("recorded", ["{", "[3]", '[{"name": "../../etc/passwd", "size": 3, "mtime_ns": 0}]'])
def test_a_damaged_record_of_the_base_is_refused(folder: Path, recorded: str) -> None:
    tensors = load_file(folder / "adapter" / WEIGHTS)
    save_file(tensors, folder / "adapter" / WEIGHTS, metadata={"base_model_files": recorded})
    with pytest.raises(ConfigurationError, match=r"damaged|outside of a folder"):
        load(folder / "adapter")
    with safe_open(folder / "adapter" / WEIGHTS, framework="np") as opened:
        assert opened.metadata() == {"base_model_files": recorded}


def test_a_head_that_is_also_the_embeddings_is_not_changed(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama", tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ConfigurationError, match="the weight of lm_head is also that of the embeddings"):
        load(tmp_path / "adapter")


def test_an_adapter_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools_service.base.checkpoints.find_adapter_config_file", lambda *_, **__: "cached")
    with pytest.raises(ConfigurationError, match=r"it is an adapter; `hf download owner/adapter --local-dir"):
        load_config("owner/adapter", "model.path")
