"""The GPU tests and bench.annotate on a machine with few packages: no Ray, no DeepSpeed, no faiss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bare_machine import hidden_modules

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # pytest asks the metadata of packages for plugins, which still name the hidden ones.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "tests.bare_machine", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)


def test_what_a_bare_machine_lacks_is_hidden() -> None:
    hidden = hidden_modules()
    assert {"ray", "deepspeed", "faiss", "peft", "openai", "mcp", "hypothesis", "jsonschema"} <= hidden
    assert hidden.isdisjoint({"torch", "transformers", "numpy", "pyarrow", "pytest", "tyro", "Stemmer"})
    for module in sorted(hidden & {"ray", "faiss"}):
        ran = run("timeit", "-n1", "-r1", f"import {module}")
        assert f"No module named '{module}'" in ran.stderr


def test_bench_annotate_runs(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    options = ("--tool", "Calculator", "--texts", "1", "--k", "1", "--m", "1", "--plain-texts", "0")
    ran = run("bench.annotate", *options, "--no-shortcuts", "--profile", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "tokens/s" in ran.stdout
    assert (tmp_path / "runs" / "bench" / "annotate.json").is_file()


def test_gpu_tests_are_collected() -> None:
    files = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in file.read_text(encoding="utf-8") and file != Path(__file__)
    ]
    assert files
    ran = run("pytest", "-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", *files)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "test_calls_and_losses_are_those_of_the_cpu[llama]" in ran.stdout
