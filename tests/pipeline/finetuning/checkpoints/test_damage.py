"""What a crash or a full disk leaves of a run: the next start needs no help."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from pipeline.finetuning.checkpoints.checkpointing import naming_a_full_disk
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from tests.pipeline.finetuning.inputs import configuration
from tools_service.base.files import OutputError

pytestmark = pytest.mark.unit

INDEX = json.dumps(
    {
        "ray_version": "2.60.0",
        "checkpoint_results": [{"checkpoint_dir_name": "step-000004", "metrics": {"step": 4}}],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": {"checkpoint_dir_name": "step-000004", "metrics": {"step": 4}},
    }
)
CUTS = [INDEX[:length] for length in range(0, len(INDEX), len(INDEX) // 20)]


@pytest.mark.parametrize("content", [INDEX, *CUTS], ids=len)
def test_a_torn_list_of_checkpoints_is_forgotten(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path / "model")
    run = RunIdentity(config=configuration(tmp_path), data="digest")
    folder.path.mkdir()
    assert not folder.claim(run, force=False)
    index = folder.checkpoints / "checkpoint_manager_snapshot.json"
    index.write_text(content)
    checkpoint = folder.checkpoints / "step-000004" / "state"
    checkpoint.mkdir(parents=True)
    assert not folder.claim(run, force=False)
    assert index.exists() is (content == INDEX)
    assert checkpoint.exists()
    assert not folder.claim(run, force=False)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 454720 vs 454608")


@pytest.mark.parametrize("error", [FULL, TORCH, SafetensorError("I/O error: No space left on device")])
@pytest.mark.parametrize(("free", "full"), [(0, True), (999, True), (1_000, False), (10**9, False)])
def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, full: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    folder = tmp_path / "checkpoints" / "step-000004"
    with (
        pytest.raises(OutputError if full else type(error)) as raised,
        naming_a_full_disk(folder, 1_000),
    ):
        raise error
    message = str(raised.value)
    assert not full or (message.startswith(f"{folder}: cannot write: No space left") and "\n" not in message)
