"""A run with adapters on two workers of a cluster: what it logs, what it leaves, merged or not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.base.finetune_config import LoraConfig
from pipeline.finetuning.adapters import count_parameters
from pipeline.finetuning.run import finetune
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, mean_loss, rows, write
from tools_service.base.checkpoints import load_model, load_tokenizer

LORA = LoraConfig(rank=2, alpha=4.0)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_on_two_workers_leaves_an_adapter_or_a_whole_model(
    tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(20)])
    config = configuration(tmp_path, lora=LORA, zero_stage=3, output=tmp_path / "adapter")
    merged = config.model_copy(
        update={"lora": LORA.model_copy(update={"merge": True}), "output": tmp_path / "merged"}
    )
    counts = count_parameters(config)
    with caplog.at_level(logging.INFO):
        manifests = [finetune(config), finetune(merged)]
    said = f"{counts.trained} of {counts.total} parameters are trained ("
    assert sum(said in record.getMessage() for record in caplog.records) == 2
    assert [manifest.parameters for manifest in manifests] == [counts, counts]
    assert (config.output / "adapter_model.safetensors").exists()
    assert not (config.output / "model.safetensors").exists()
    assert (merged.output / "model.safetensors").exists()
    assert not list(merged.output.glob("adapter_*"))
    assert not list(tmp_path.glob("*/checkpoints"))
    models = {
        path: load_model(AutoModelForCausalLM, str(path), "model.path", dtype="float32")
        for path in (config.output, merged.output)
    }
    expected = models[config.output].state_dict()
    for name, value in models[merged.output].state_dict().items():
        assert value.equal(expected[name]), name
    data = load_examples(config, load_tokenizer(str(config.output), "model.path")).held_out
    best = json.loads((config.output / "manifest.json").read_text())["best"]
    with torch.no_grad():
        loss = float(mean_loss(models[config.output].eval(), data, range(len(data))))
    assert loss == pytest.approx(best["held_out_loss"], abs=1e-5)
    for finished in (config, merged):
        finetune(finished)  # nothing to do: the result is whole
