"""LoRA adapters in fine-tuning: what is trained, the losses at every stage, exact resuming, the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.fixtures.small_models import tokenizer
from bench.fixtures.tiny_models import tiny_config, tiny_model
from pipeline.base.finetune_config import FinetuneConfig, LoraConfig
from pipeline.finetuning.adapters import count_parameters, insert_adapters, merge_adapter
from pipeline.finetuning.checkpoints.checkpointing import restore, save
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from pipeline.finetuning.data.batches import EpochSampler, IndexedBatches
from pipeline.finetuning.evaluation.held_out import held_out_loss
from pipeline.finetuning.run import finetune
from pipeline.finetuning.step.training import Training
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, mean_loss, rows, write
from tools_service.base.checkpoints import load_model, load_tokenizer
from tools_service.base.errors import ConfigurationError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]

CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8.0)
LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gptj": {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama and C* in files; GPT-2, whose dropout is not zero and whose layers are Conv1D, beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    base_model(folder / "base")
    base_model(folder / "gpt2", "gpt2", "bytes")
    write(folder / "augmented", [rows(24)])
    return folder


def one_worker(folder: Path, model: Path | None = None, **overrides: Any) -> FinetuneConfig:
    config = configuration(folder, **{"workers": 1, "lora": LORA, "max_steps": 6} | overrides)
    path = str(model or config.model.path)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})


def start(config: FinetuneConfig) -> Training:
    words = load_tokenizer(config.model.path, "model.path")
    batches = IndexedBatches(load_examples(config, words).train, config, rank=0)
    return Training(config, batches, words, rank=0, device=CPU)


def held_out(training: Training) -> float:
    return held_out_loss(training, load_examples(training.config, training.tokenizer).held_out)[0]


def trained(training: Training) -> dict[str, torch.Tensor]:
    named = training.engine.module.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if weight.requires_grad}


def plain_peft(config: FinetuneConfig, steps: int) -> list[float]:
    """Losses of a model with adapters in plain torch, text by text."""
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    insert_adapters(model, config)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], weight_decay=0.0)
    data = load_examples(config, AutoTokenizer.from_pretrained(config.model.path))
    sampler, losses = EpochSampler(len(data.train), config.batch_size, config.seed), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate
        optimizer.zero_grad()
        loss = mean_loss(model, data.train, sampler.batch(step).tolist())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_losses_are_those_of_plain_torch_and_the_base_stays(
    folder: Path, zero_stage: int, gradient_checkpointing: bool
) -> None:
    config = one_worker(
        folder, zero_stage=zero_stage, gradient_checkpointing=gradient_checkpointing, warmup_share=0.0
    )
    training = start(config)
    before = AutoModelForCausalLM.from_pretrained(config.model.path).state_dict()
    losses = [training.step(step).loss for step in (1, 2, 3)]
    assert losses == pytest.approx(plain_peft(config, 3), abs=1e-5)
    assert losses[0] > losses[2]
    counts = count_parameters(config)
    weights = training.engine.module.named_parameters()
    numbers = {name: getattr(weight, "ds_numel", weight.numel()) for name, weight in weights}
    assert counts.trained == sum(n for name, n in numbers.items() if "lora_" in name)
    assert counts.total == sum(n for name, n in numbers.items() if "lora_" not in name)
    if zero_stage < 3:
        for name, weight in training.engine.module.named_parameters():
            if "lora_" not in name:
                assert weight.equal(before[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize(("zero_stage", "model"), [(0, "base"), (2, "gpt2"), (3, "gpt2")])
def test_a_restored_run_goes_on_to_the_last_bit(
    folder: Path, tmp_path: Path, zero_stage: int, model: str
) -> None:
    config = one_worker(folder, folder / model, zero_stage=zero_stage, lora=LoraConfig(rank=4, dropout=0.2))
    whole = start(config)
    for step in (1, 2, 3):
        whole.step(step)
    save(whole, tmp_path, 3)
    steps = [whole.step(step) for step in (4, 5)]
    resumed = start(config)
    assert restore(resumed, tmp_path) == 3
    assert [resumed.step(step) for step in (4, 5)] == steps
    save(whole, tmp_path / "whole", 5)
    save(resumed, tmp_path / "resumed", 5)
    for name, value in load_file(tmp_path / "whole" / "model" / "adapter_model.safetensors").items():
        assert value.equal(load_file(tmp_path / "resumed" / "model" / "adapter_model.safetensors")[name])
    # The state holds the adapters and not the base.
    state = torch.load(tmp_path / "state" / _state_file(zero_stage), weights_only=False)
    assert all("lora_" in name for name in state["module"] if "weight" in name)


def _state_file(zero_stage: int) -> str:
    return f"{'zero_pp_rank_0_' if zero_stage == 3 else ''}mp_rank_00_model_states.pt"


def test_a_saved_adapter_is_one_of_peft_and_loads_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    config = one_worker(folder)
    training = start(config)
    for step in (1, 2):
        training.step(step)
    save(training, tmp_path, 2)
    saved = tmp_path / "model"
    assert {path.name for path in saved.iterdir()} >= {"adapter_config.json", "tokenizer.json"}
    assert not (saved / "model.safetensors").exists()
    settings = json.loads((saved / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config.model.path
    assert set(settings["target_modules"]) == LINEAR["llama"]
    loss = held_out(training)
    base = AutoModelForCausalLM.from_pretrained(config.model.path)
    data = load_examples(config, AutoTokenizer.from_pretrained(saved)).held_out
    with torch.no_grad():
        for model in (
            peft.PeftModel.from_pretrained(base, saved),
            load_model(AutoModelForCausalLM, str(saved), "model", dtype="float32"),
        ):
            assert float(mean_loss(model.eval(), data, range(len(data)))) == pytest.approx(loss, abs=1e-5)
    merge_adapter(saved, tmp_path / "merged", "float32")
    merged = load_model(AutoModelForCausalLM, str(tmp_path / "merged"), "model", dtype="float32")
    loaded = load_model(AutoModelForCausalLM, str(saved), "model", dtype="float32")
    for name, value in merged.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name


def test_adapters_of_bfloat16_models_have_its_type(folder: Path, tmp_path: Path) -> None:
    config = one_worker(folder, zero_stage=1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    training = start(config)
    assert {weight.dtype for weight in training.engine.module.parameters()} == {torch.bfloat16}
    for step in (1, 2):
        training.step(step)
    save(training, tmp_path, 2)
    stored = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    resumed = start(config)
    restore(resumed, tmp_path)
    assert resumed.step(3) == training.step(3)


@pytest.mark.parametrize("architecture", LINEAR)
def test_all_linear_layers_of_the_blocks_have_adapters(tmp_path: Path, architecture: str) -> None:
    words = tokenizer("bytes")
    model = tiny_model(tiny_config(architecture))
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    config = one_worker(tmp_path)
    insert_adapters(model, config)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == LINEAR[architecture]
    blocks = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
    assert len(blocks) == 2 * len(LINEAR[architecture]) + (2 if architecture == "gpt2" else 0)
    assert count_parameters(config).trained == sum(
        weight.numel() for weight in model.parameters() if weight.requires_grad
    )


def test_some_layers_have_adapters_on_request(folder: Path) -> None:
    lora = LORA.model_copy(update={"target_modules": ("self_attn.q_proj", "v_proj")})
    every, some = (count_parameters(one_worker(folder, lora=config)) for config in (LORA, lora))
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    insert_adapters(model, one_worker(folder, lora=lora))
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, w in model.named_parameters() if w.requires_grad
    }
    assert names == {"q_proj", "v_proj"}
    assert 0 < some.trained < every.trained < every.total == some.total


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "queries"), r"no linear layer 'queries'; it has down_proj, gate_proj, k_proj, o_proj"),
        (("embed_tokens",), r"no linear layer 'embed_tokens'"),
        (("_proj",), r"no linear layer '_proj'"),
    ],
)
def test_layers_that_are_not_there_are_named(folder: Path, targets: tuple[str, ...], message: str) -> None:
    lora = LORA.model_copy(update={"target_modules": targets})
    with pytest.raises(ConfigurationError, match=rf"lora\.target_modules: the model has {message}"):
        count_parameters(one_worker(folder, lora=lora))


def test_a_head_that_is_also_the_embeddings_has_no_adapter(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama", tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    lora = LORA.model_copy(update={"target_modules": ("lm_head",)})
    with pytest.raises(ConfigurationError, match="shares its weight with the embeddings"):
        count_parameters(one_worker(tmp_path, lora=lora))
    assert count_parameters(one_worker(tmp_path)).trained


@pytest.mark.parametrize("values", [{"merge": True}, {"target_modules": ("q_proj",)}, {"dropout": 0.1}])
def test_options_of_adapters_without_a_rank_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=rf"lora\.{next(iter(values))} has no effect with lora\.rank = 0"
    ):
        LoraConfig(**values)
    LoraConfig(rank=1, **values)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """The result of two steps."""
    training = start(one_worker(folder))
    for step in (1, 2):
        training.step(step)
    save(training, folder / "trained", 2)
    return folder / "trained" / "model"


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_training_goes_on_from_an_adapter(
    folder: Path, adapter: Path, tmp_path: Path, zero_stage: int
) -> None:
    training = start(one_worker(folder, adapter, zero_stage=zero_stage))
    before = load_model(AutoModelForCausalLM, str(adapter), "model", dtype="float32")
    data = load_examples(training.config, training.tokenizer).held_out
    with torch.no_grad():
        loss = float(mean_loss(before, data, range(len(data))))
    assert held_out(training) == pytest.approx(loss, abs=1e-5)
    training.step(1)
    save(training, tmp_path, 1)
    first, second = (
        json.loads((path / "adapter_config.json").read_text()) for path in (adapter, tmp_path / "model")
    )
    assert second["base_model_name_or_path"] == first["base_model_name_or_path"] == str(folder / "base")
    assert second["r"] == 4
    names = [set(load_file(path / "adapter_model.safetensors")) for path in (adapter, tmp_path / "model")]
    assert names[0] == names[1]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_all_weights_can_be_trained_from_an_adapter(
    folder: Path, adapter: Path, tmp_path: Path, zero_stage: int
) -> None:
    config = one_worker(folder, adapter, lora=LoraConfig(), zero_stage=zero_stage)
    training = start(config)
    save(training, tmp_path, 0)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    expected = load_model(AutoModelForCausalLM, str(adapter), "model", dtype="float32").state_dict()
    for name, value in expected.items():
        assert value.equal(written[name]), name
    assert count_parameters(config).trained == count_parameters(config).total


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=8, alpha=8.0), r"an adapter of rank 4 and alpha 8, and lora\.rank = 8"),
        (LoraConfig(rank=4, alpha=16.0), r"an adapter of rank 4 and alpha 8, .* lora\.alpha = 16;"),
        (
            LoraConfig(rank=4, alpha=8.0, target_modules=("q_proj",)),
            "of other layers than lora.target_modules",
        ),
    ],
)
def test_an_adapter_of_other_settings_is_not_trained_further(
    folder: Path, adapter: Path, lora: LoraConfig, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        count_parameters(one_worker(folder, adapter, lora=lora))


def test_an_output_that_holds_the_base_of_the_adapter_is_refused(folder: Path, adapter: Path) -> None:
    config = one_worker(folder, adapter, output=folder / "base")
    with pytest.raises(ConfigurationError, match=r"output = .*base holds model\.path = .*base: choose"):
        finetune(config, force=True)
    assert (folder / "base" / "model.safetensors").exists()


def test_the_identity_of_a_run_has_the_base_of_its_adapter(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    copied = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    settings = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "../base"}))
    config = one_worker(folder, copied)
    first = RunIdentity.of(config).model
    (base / "generation_config.json").write_text('{"do_sample": true}')
    assert RunIdentity.of(config).model != first


def test_a_published_adapter_is_checked_like_a_model(folder: Path, adapter: Path, tmp_path: Path) -> None:
    config = one_worker(folder, output=tmp_path / "out")
    run = RunFolder(config.output)
    run.path.mkdir()
    run.claim(RunIdentity.of(config), force=False)
    shutil.copytree(adapter, run.checkpoints / "step-000002" / "model")
    values = {
        "versions": {},
        "created": "",
        "texts": {},
        "best": HeldOutEvaluation(2, 1.5, 10),
        "wall_s": 0.0,
    }
    values["parameters"] = count_parameters(config)
    run.publish(run.checkpoints / "step-000002" / "model", RunIdentity.of(config), values)
    assert not run.checkpoints.exists()
    assert run.manifest().parameters == count_parameters(config)
    run.require_result()
    load_model(AutoModelForCausalLM, str(run.path), "model", dtype="float32")
    file = run.path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(
        ConfigurationError, match=r"adapter_model\.safetensors has other content than was written"
    ):
        run.require_result()
    with pytest.raises(
        ConfigurationError, match=r"adapter_model\.safetensors has other content than was written"
    ):
        load_model(AutoModelForCausalLM, str(run.path), "model", dtype="float32")
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"adapter_model\.safetensors is missing"):
        run.require_result()
