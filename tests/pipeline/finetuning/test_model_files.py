"""The folder of a fine-tuned model: it loads elsewhere, decodes greedily, and has a card for the hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard as HubCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.base.config import ModelConfig
from pipeline.base.finetune_config import LoraConfig
from pipeline.base.inference_config import GenerateConfig
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from pipeline.finetuning.model_card import write_model_card
from pipeline.finetuning.model_files import add_model_files, generation_config
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, MetricsLog, TrainStep
from pipeline.inference.generator import available_tools
from pipeline.storage.card import CARD
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.tools_json import TOOLS
from tests.pipeline.finetuning.inputs import base_model, configuration, rows, write

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(20)])
    manifest = {"tools": {"Calculator": {"calls": 20}}}
    (tmp_path / "augmented" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def published(folder: Path, **overrides: Any) -> RunFolder:
    """A finished run, whose model is the one to start from."""
    config = configuration(folder, **overrides)
    run, identity = RunFolder(config.output), RunIdentity.of(config)
    run.path.mkdir()
    run.claim(identity, force=False)
    log = MetricsLog(run.metrics, 0)
    for step in range(50):
        if step:
            log.append(TrainStep(step, 2.0 - 0.01 * step, 1e-3, 0.5, seconds=0.1))
        log.append(HeldOutEvaluation(step, 2.0 - 0.02 * step, 10))
    model = base_model(run.checkpoints / "step-000037" / "model")
    add_model_files(model, config)
    best = HeldOutEvaluation(37, 1.26, 10)
    texts = {"trained_on": 15, "held_out": 5}
    values = {"versions": {"python": "3.11"}, "created": "today", "texts": texts, "best": best, "wall_s": 1.0}
    run.publish(model, identity, values)
    write_model_card(run)
    return run


def test_the_folder_loads_and_decodes_greedily(folder: Path) -> None:
    run = published(folder)
    model = AutoModelForCausalLM.from_pretrained(run.path)
    words = AutoTokenizer.from_pretrained(run.path)
    assert (model.generation_config.do_sample, model.generation_config.num_beams) in (
        (False, 1),
        (False, None),
    )
    assert model.generation_config.eos_token_id == words.eos_token_id
    assert model.generation_config.pad_token_id is not None
    ids = words("Ada has", return_tensors="pt").input_ids
    torch.manual_seed(0)
    continued = model.generate(ids, max_new_tokens=8)
    torch.manual_seed(1)
    assert model.generate(ids, max_new_tokens=8).tolist() == continued.tolist()
    with torch.no_grad():
        assert int(model(ids).logits[0, -1].argmax()) == int(continued[0, ids.shape[1]])
    assert list(FINE_TUNED.foreign(run.path)) == []


def test_the_card_is_valid_for_the_hub(folder: Path) -> None:
    run = published(folder)
    page = (run.path / CARD).read_text()
    card = HubCard(page)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert set(card.data.tags) == {"tool-use", "toolformer"}
    assert card.data.base_model is None, "a folder of this machine is no name on the hub"
    assert "# license: " in page
    for words in ("digest", "Calculator", "trained on: 15", "python 3.11", "learning rate 0.001", "step 37"):
        assert words in page
    assert "| step | held-out loss | perplexity | training loss |" in page
    table = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(table) <= 22
    assert [line for line in table if line.startswith("| 37 |")] == ["| 37 | 1.26 | 3.5254 | 1.63 |"]
    assert table[-1].startswith("| 49 |")


def test_a_base_on_the_hub_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = published(folder)
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["config"]["model"]["path"] = "openai-community/gpt2-large"
    manifest["config"]["lora"]["rank"] = 8
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    (run.path / "adapter_config.json").write_text("{}")
    write_model_card(run)
    header = yaml.safe_load((run.path / CARD).read_text().split("---")[1])
    validate_repo_id(header["base_model"])
    assert header["base_model"] == "openai-community/gpt2-large"
    assert (header["base_model_relation"], header["library_name"]) == ("adapter", "peft")
    with pytest.raises(HFValidationError):
        validate_repo_id(str(folder / "base"))


def test_an_edited_card_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = published(folder)
    edited = (run.path / CARD).read_text().replace("# license: choose one and write it here", "license: mit")
    (run.path / CARD).write_text(edited)
    write_model_card(run)
    assert (run.path / CARD).read_text() == edited
    assert "was edited and stays" in caplog.text
    run.require_result()  # an edited card is no damage
    identity = RunIdentity.of(configuration(folder))
    assert not run.claim(identity, force=True), "the run starts over"
    assert (run.path / CARD).read_text() == edited
    assert not (run.path / "model.safetensors").exists()


def test_the_baseline_without_calls_has_no_tools(folder: Path) -> None:
    run = published(folder, column="plain")
    assert not (run.path / TOOLS).exists()
    assert "without their calls: a baseline" in (run.path / CARD).read_text()


@pytest.mark.parametrize(
    ("earlier", "ends", "padding"),
    [
        ({"eos_token_id": [7, 8], "do_sample": True, "temperature": 0.6, "pad_token_id": 5}, [7, 8], 5),
        ({"eos_token_id": 7}, [7], 7),
        ({}, [], None),
    ],
)
def test_ends_of_texts_are_kept_and_sampling_is_not(
    tmp_path: Path, earlier: dict[str, Any], ends: list[int], padding: int | None
) -> None:
    class Words:
        eos_token_id = 3
        bos_token_id = pad_token_id = None

    GenerationConfig(**earlier).save_pretrained(tmp_path)
    made = generation_config(tmp_path, "no/base", Words())
    ids = made.eos_token_id if isinstance(made.eos_token_id, list) else [made.eos_token_id]
    assert ids == [*ends, 3]
    assert made.pad_token_id == (3 if padding is None else padding)
    assert not made.do_sample
    made.save_pretrained(tmp_path)  # transformers refuses a contradictory one


def test_an_adapter_takes_the_ends_of_its_base(folder: Path) -> None:
    config = configuration(folder, lora=LoraConfig(rank=4))
    adapter = folder / "adapter"
    adapter.mkdir()
    GenerationConfig(eos_token_id=7).save_pretrained(folder / "base")
    add_model_files(adapter, config)
    made = GenerationConfig.from_pretrained(adapter)
    assert made.eos_token_id == [7, AutoTokenizer.from_pretrained(folder / "base").eos_token_id]
    assert (adapter / TOOLS).is_file()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, "trained on calls of Weather, which are unknown here: declare them in a --tools-file"),
        ({"tools_off": ("Calculator",)}, "trained on calls of Calculator, which are off: tools_off"),
        ({"disabled": True}, None),
        ({"k": 0}, None),
    ],
)
def test_tools_that_will_not_answer_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], warning: str | None
) -> None:
    manifest = {"tools": {"Calculator": {"calls": 20}, "Weather": {"calls": 1}}}
    (folder / "augmented" / "manifest.json").write_text(json.dumps(manifest))
    run = published(folder)
    with caplog.at_level(logging.WARNING, "pipeline.inference.generator"):
        available_tools(GenerateConfig(model=ModelConfig(path=str(run.path)), **changes))
    about = [record.message for record in caplog.records if "was trained on" in record.message]
    assert any(warning in message for message in about) if warning else not about
