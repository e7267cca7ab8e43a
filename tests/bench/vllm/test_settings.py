"""The variables and libraries of vLLM's process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench.vllm.settings import environment, preloaded

pytestmark = pytest.mark.unit


def test_what_the_user_has_set_for_vllm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    env = environment(sys.executable, torch.device("cpu"))
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert len(env["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == int(env["OMP_NUM_THREADS"])
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(sys.executable, torch.device("cuda"))


def test_the_libraries_of_the_environment_are_preloaded(tmp_path: Path) -> None:
    for name in ("libiomp5.so", "libtcmalloc_minimal.so.4", "libtcmalloc_minimal.so.4.5.10"):
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("libtcmalloc_minimal.so.4", "libiomp5.so")]
    assert preloaded(tmp_path) == expected
