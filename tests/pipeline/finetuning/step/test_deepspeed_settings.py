"""A DeepSpeed file is used as it is or refused by name, before workers start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.run import with_absolute_paths
from pipeline.finetuning.step.deepspeed_checks import require_known_keys
from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings, given_file, packaged_file
from tests.pipeline.finetuning.inputs import configuration
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

HERE = Path("folder")
# batch_size 8, micro_batch_size 2, two workers: two forwards each; stage 2, float32.
PLAIN: dict[str, Any] = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}


def with_file(folder: Path, content: str | dict[str, Any], **overrides: Any) -> FinetuneConfig:
    file = folder / "deepspeed.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return configuration(HERE, deepspeed=file, **overrides)


def require_refused(folder: Path, content: Any, named: str) -> None:
    """The file is refused in few and short words, which match `named`."""
    config = with_file(folder, content)
    with pytest.raises(ConfigurationError, match=named) as caught:
        require_known_keys(config)
    assert str(config.deepspeed) in str(caught.value)
    assert str(caught.value).count("\n") < 3
    assert len(str(caught.value).replace(str(config.deepspeed), "")) < 700


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sizes_and_types_come_from_the_configuration(stage: int) -> None:
    settings = deepspeed_settings(configuration(HERE, micro_batch_size=1, zero_stage=stage))
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["train_batch_size"] == 8
    assert settings["train_micro_batch_size_per_gpu"] == 1
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["bf16"] == settings["fp16"] == {"enabled": False}
    assert settings["gradient_clipping"] == 1.0


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"zero_optimization": {}},
    {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2},
    {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"},
    {"gradient_accumulation_steps": "auto", "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}},
    {"zero_optimization": {"stage": "auto"}},
    {"bf16": {"enabled": False}, "fp16": {"enabled": False, "loss_scale": 0}},
    {"optimizer": None, "scheduler": {}},
    {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
    {"zero_optimization": {"stage": 2, "offload_param": None, "cpu_offload": False}},
    {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
    {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": True},
    {"aio": {"block_size": 1_048_576, "queue_depth": 8}},
    {"zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1_000_000}},
    {"gradient_clipping": 0.5, "steps_per_print": 10, "wall_clock_breakdown": True},
    {"zero_allow_untested_optimizer": True, "prescale_gradients": False},
    {"flops_profiler": {"enabled": False}, "comms_logger": {"enabled": False}},
    {"tensorboard": {"enabled": False, "output_path": "logs"}},
    {"data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"}},
    {"communication_data_type": "fp32", "checkpoint": {"tag_validation": "Warn"}},
]


@pytest.mark.parametrize("content", ACCEPTED, ids=str)
def test_what_deepspeed_knows_is_passed_on(tmp_path: Path, content: dict[str, Any]) -> None:
    config = with_file(tmp_path, content)
    settings = deepspeed_settings(config)
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_allow_untested_optimizer"] is True
    assert (settings["train_batch_size"], settings["gradient_accumulation_steps"]) == (8, 2)
    for key, value in content.items():
        if not isinstance(value, dict) and value != "auto":
            assert settings.get(key) == value
    require_known_keys(config)


ADAM = {"type": "AdamW", "params": {"lr": 1e-5}}
REFUSED: list[tuple[Any, str]] = [
    # One source of truth for what the configuration decides.
    ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage = 3, but zero_stage = 2"),
    ({"zero_optimization": {"stage": 0}}, r"zero_optimization\.stage = 0"),
    ({"zero_optimization": {"stage": "2"}}, r"zero_optimization\.stage = '2'"),
    ({"zero_optimization": {"stage": None}}, r"zero_optimization\.stage = None"),
    ({"zero_optimization": {"stage": True}}, r"zero_optimization\.stage = True"),
    ({"zero_optimization": True}, "zero_optimization = True must be a JSON object"),
    ({"zero_optimization": [2]}, "zero_optimization = .* must be a JSON object"),
    ({"train_batch_size": 16}, "train_batch_size = 16, but batch_size = 8"),
    ({"train_batch_size": "8"}, "train_batch_size = '8'"),
    ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu = 8, but micro_batch_size = 2"),
    ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps = 1, but batch_size"),
    ({"bf16": {"enabled": True}}, r"bf16\.enabled = True, but model\.dtype = float32"),
    ({"fp16": {"enabled": True}}, r"fp16\.enabled = True, but model\.dtype = float32"),
    ({"fp16": True}, "fp16 = True must be a JSON object"),
    ({"bfloat16": {"enabled": True}}, r"bfloat16: set model\.dtype"),
    ({"amp": {"enabled": True}}, r"amp: set model\.dtype"),
    ({"torch_autocast": {"enabled": True}}, r"torch_autocast: set model\.dtype"),
    ({"data_types": {"param_dtype": "bf16"}}, r"data_types\.param_dtype"),
    ({"optimizer": ADAM}, "optimizer: .* set learning_rate"),
    ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "optimizer"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler: .* warmup_share"),
    # What fine-tuning does not do.
    ({"zero_optimization": {"cpu_offload": True}}, r"zero_optimization\.cpu_offload: write offload_optim"),
    ({"zero_optimization": {"cpu_offload_param": True}}, r"cpu_offload_param: write offload_param"),
    ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zenflow: fine-tuning does not support it"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "cpu", "super_offload": True}}},
        r"remove zero_optimization\.offload_optimizer\.super_offload",
    ),
    ({"bf16": {"bf16_master_weights_and_grads": True}}, r"bf16_master_weights_and_grads: .* float32"),
    ({"activation_checkpointing": {"partition_activations": True}}, "set gradient_checkpointing"),
    ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
    ({"zero_optimization": {"offload_optimizer": True}}, "DeepSpeed refuses it: .*offload_optimizer"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "cpu", "rato": 1}}},
        "DeepSpeed refuses it: .*rato",
    ),
    ({"zero_force_ds_cpu_optimizer": "no"}, "zero_force_ds_cpu_optimizer = 'no' is neither true nor false"),
    ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
    ({"elasticity": {"enabled": True}}, "elasticity"),
    ({"curriculum_learning": {"enabled": True}}, "curriculum_learning"),
    ({"data_efficiency": {"enabled": True}}, "data_efficiency"),
    ({"compression_training": {"weight_quantization": {}}}, "compression_training"),
    ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
    ({"checkpoint": {"load_universal": True}}, r"checkpoint\.load_universal"),
    ({"zero_allow_untested_optimizer": False}, "zero_allow_untested_optimizer must be true"),
    # "auto" of the Trainer.
    ({"gradient_clipping": "auto"}, "gradient_clipping = 'auto'"),
    (
        {"zero_optimization": {"reduce_bucket_size": "auto"}},
        r"zero_optimization\.reduce_bucket_size = 'auto'",
    ),
    ({"steps_per_print": "auto"}, "steps_per_print = 'auto'"),
    # Files that are none.
    ("", "not a DeepSpeed configuration"),
    ("{", "not a DeepSpeed configuration"),
    ("[]", "must be a JSON object"),
    ("null", "must be a JSON object"),
    ("3", "must be a JSON object"),
    ('{"gradient_clipping": NaN}', "NaN is not a number"),
    ('{"gradient_clipping": Infinity}', "Infinity is not a number"),
    ('{"gradient_clipping": 1e999}', "gradient_clipping = inf"),
    ('{"gradient_clipping": 1, "gradient_clipping": 2}', "gradient_clipping occurs twice"),
    ("[" * 100_000, "not a DeepSpeed configuration"),
    ("// a comment\n{}", "not a DeepSpeed configuration"),
    ({"steps_per_print": 0}, "steps_per_print = 0"),
    ({"zero_optimization": {"stage": "y" * 100_000}}, "stage = 'yyy"),
    ({"zero_optimization": ["y" * 100_000]}, "zero_optimization = "),
]


@pytest.mark.parametrize(("content", "named"), REFUSED, ids=[str(case[0])[:60] for case in REFUSED])
def test_what_a_run_would_not_do_is_refused_by_name(tmp_path: Path, content: Any, named: str) -> None:
    require_refused(tmp_path, content, named)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.json: no such file\. Copy one of .*zero3_nvme"):
        deepspeed_settings(configuration(HERE, deepspeed=tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="not a DeepSpeed configuration"):
        deepspeed_settings(configuration(HERE, deepspeed=tmp_path))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigurationError, match=r"bytes\.json"):
        deepspeed_settings(configuration(HERE, deepspeed=tmp_path / "bytes.json"))


def test_bfloat16_is_turned_on_by_the_type_of_the_model(tmp_path: Path) -> None:
    model = configuration(HERE).model.model_copy(update={"dtype": "bfloat16"})
    given = {"bf16": {"immediate_grad_update": True}}
    settings = deepspeed_settings(with_file(tmp_path, given, model=model))
    assert settings["bf16"] == {"immediate_grad_update": True, "enabled": True}


@pytest.mark.parametrize(
    ("name", "stage"), [("zero2_offload", 2), ("zero3_offload", 3), ("zero3_nvme", 3), ("zero1", 1)]
)
def test_a_file_of_this_package_is_found_by_its_name(name: str, stage: int) -> None:
    path = given_file(Path(name))
    assert path == packaged_file(name)
    config = configuration(HERE, deepspeed=path, zero_stage=stage)
    require_known_keys(config)
    assert deepspeed_settings(config)["zero_force_ds_cpu_optimizer"] is False
    with pytest.raises(ConfigurationError, match=f"stage = {stage}, but zero_stage = 0"):
        deepspeed_settings(configuration(HERE, deepspeed=path, zero_stage=0))


def test_a_file_of_the_user_comes_before_one_of_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero3_offload").write_text("{}")
    for path in (Path("zero3_offload"), Path("zero4_offload"), Path("folder/zero3_nvme")):
        assert given_file(path) == path


def test_the_name_of_a_file_of_this_package_becomes_its_path() -> None:
    config = with_absolute_paths(configuration(HERE, deepspeed=Path("zero3_offload"), zero_stage=3))
    assert config.deepspeed == packaged_file("zero3_offload")
