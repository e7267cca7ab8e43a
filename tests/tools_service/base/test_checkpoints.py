"""Checkpoints: what loads, and what is refused with the field that named it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from tests.tools_service.encoders import bert
from tools_service.base import checkpoints
from tools_service.base.checkpoints import load_config, load_model, load_tokenizer, resolve_device
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


class ModelError(ConfigurationError):
    """The error class of a caller."""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return bert(tmp_path / "bert", ["a", "few", "words"])


def drop_weights(folder: str, prefix: str) -> None:
    file = Path(folder) / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if not name.startswith(prefix)}
    save_file(kept, file, metadata={"format": "pt"})


def test_a_checkpoint_is_loaded(folder: str) -> None:
    assert load_config(folder, "x.model").model_type == "bert"
    assert load_tokenizer(folder, "x.model")("few").input_ids == [2, 5, 3]
    model = load_model(AutoModel, folder, "x.model", dtype="bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_folder_without_a_checkpoint_is_the_callers_error_with_the_field(tmp_path: Path) -> None:
    refused = pytest.raises(ModelError, match=rf"x\.model '{tmp_path}': cannot load it: ")
    with refused:
        load_config(str(tmp_path), "x.model", ModelError)
    with refused:
        load_tokenizer(str(tmp_path), "x.model", ModelError)
    with refused:
        load_model(AutoModel, str(tmp_path), "x.model", dtype="float32", error=ModelError)


def test_weights_outside_safetensors_are_refused(folder: str) -> None:
    weights = load_file(Path(folder) / "model.safetensors")
    torch.save(weights, Path(folder) / "pytorch_model.bin")
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load it"):
        load_model(AutoModel, folder, "x.model", dtype="float32", error=ModelError)


def test_a_damaged_file_of_weights_is_refused(folder: str) -> None:
    (Path(folder) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"x\.model .*cannot load it"):
        load_model(AutoModel, folder, "x.model", dtype="float32", error=ModelError)


def test_missing_weights_are_refused_unless_nothing_uses_them(folder: str) -> None:
    drop_weights(folder, "pooler.")
    with pytest.raises(
        ModelError, match=r"x\.model .*: no weights for pooler\.dense\.bias, pooler\.dense\.w"
    ):
        load_model(AutoModel, folder, "x.model", dtype="float32", error=ModelError)
    load_model(AutoModel, folder, "x.model", dtype="float32", unused_weights=("pooler.",))
    drop_weights(folder, "encoder.")
    with pytest.raises(ModelError, match=r"no weights for encoder\."):
        load_model(
            AutoModel, folder, "x.model", dtype="float32", error=ModelError, unused_weights=("pooler.",)
        )


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(checkpoints, "is_torch_cuda_available", lambda has=available: has)
        assert resolve_device("auto", "qa.device") == device
        assert resolve_device("cpu", "qa.device") == "cpu"


def test_cuda_without_a_gpu_is_refused_by_the_name_of_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "is_torch_cuda_available", lambda: False)
    with pytest.raises(ModelError, match=r"^qa\.device cuda: this process sees no GPU; auto or cpu run on"):
        resolve_device("cuda", "qa.device", ModelError)
    monkeypatch.setattr(checkpoints, "is_torch_cuda_available", lambda: True)
    assert resolve_device("cuda", "qa.device") == "cuda"


def test_several_threads_may_load_models_at_once() -> None:
    """While transformers loads a model, it keeps every other one in the process from tying its weights."""
    load = partial(load_model, AutoModelForCausalLM, "demo/models/annotator", "model.path", dtype="float32")
    with ThreadPoolExecutor(4) as threads:
        models = [loaded.result() for loaded in [threads.submit(load, device_map="meta") for _ in range(8)]]
    assert all(model.get_output_embeddings() is not None for model in models)
