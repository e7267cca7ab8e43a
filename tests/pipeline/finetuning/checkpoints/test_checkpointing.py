"""What the files of a checkpoint hold."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.finetuning.checkpoints.checkpointing import STATE, save
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.step.training import Training
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, rows, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]


def modules_in(pickled: bytes) -> set[str]:
    """The top-level packages of all that is named in a pickle."""
    strings, found = [], set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(str(argument).split(".")[0].split()[0])
        elif opcode.name == "STACK_GLOBAL":
            found.add(str(strings[-2]).split(".")[0])
        elif isinstance(argument, str):
            strings.append(argument)
    return found


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_no_checkpoint_names_a_module_of_this_package(tmp_path: Path, zero_stage: int) -> None:
    """A later version, whose modules may be elsewhere, must read it."""
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(24)])
    config = configuration(tmp_path, workers=1, zero_stage=zero_stage)
    words = AutoTokenizer.from_pretrained(config.model.path)
    batches = IndexedBatches(load_examples(config, words).train, config, rank=0)
    training = Training(config, batches, words, rank=0, device=torch.device("cpu"))
    training.step(1)
    save(training, tmp_path / "step", 1)
    named: set[str] = set()
    for path in (tmp_path / "step" / STATE).glob("*.pt"):
        with zipfile.ZipFile(path) as file:
            named |= modules_in(file.read(next(n for n in file.namelist() if n.endswith("/data.pkl"))))
    assert "torch" in named
    assert not named & {"pipeline", "tools_service"}, named
