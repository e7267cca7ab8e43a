"""The wheel: its files, its requirements, and its commands in an environment without the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.storage.provenance import versions
from tools_service.base.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "tools_service")
DATA_FOLDERS = {
    "tools_service/syntax/prompt_files",
    "pipeline/finetuning/deepspeed",
    "pipeline/planning/figures",
    "pipeline/analysis",
    "pipeline/benchmarks",
    "pipeline/serving/page",
    "pipeline/report/html/assets",
    "pipeline/report/html/assets/uplot",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy of the sources: a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    [file] = (folder / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment: the wheel, and the requirements from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (purelib / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(folder / "bin" / "python")
    pip("install", "--ignore-installed", str(wheel), python=python)
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The working folder of the commands."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def pip(command: str, *arguments: str, python: str = sys.executable) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--python", python]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *options, command, *offline, *arguments], check=True)


def run(command: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def read_member(wheel: Path, suffix: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(suffix)]
        return archive.read(name).decode()


def metadata(wheel: Path) -> Message:
    return Parser().parsestr(read_member(wheel, ".dist-info/METADATA"))


def pins() -> dict[str, str]:
    """The version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


def listed(file: str) -> list[str]:
    """The requirements in `file`, without comments."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return [line for line in lines if line]


@pytest.mark.unit
def test_the_wheel_has_both_packages_the_files_they_read_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        contents = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix == ".py"
        or path.name == "py.typed"
        or path.parent.relative_to(ROOT).as_posix() in DATA_FOLDERS
    }
    assert contents == expected
    data = {Path(name) for name in contents if not name.endswith(".py")}
    assert {path.parent.as_posix() for path in data} == {*PACKAGES, *DATA_FOLDERS}
    assert sum(path.name == "py.typed" for path in data) == len(PACKAGES)
    assert read_member(wheel, "top_level.txt").split() == list(PACKAGES)


@pytest.mark.unit
def test_the_metadata_has_version_commands_and_ranges(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["Name"] == "toolformer-on-ray"
    assert fields["Version"] == __version__
    assert fields["License-Expression"] == "Apache-2.0"
    commands = re.findall(r"^(\S+) = (\S+)$", read_member(wheel, "entry_points.txt"), re.MULTILINE)
    assert dict(commands) == {
        "toolformer": "pipeline.__main__:main",
        "toolformer-tools": "tools_service.__main__:main",
    }
    requirements = [Requirement(text) for text in fields.get_all("Requires-Dist", [])]
    assert requirements
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{requirement}: no lower bound"
        assert not operators & {"==", "==="}, f"{requirement}: a pin"


@pytest.mark.unit
def test_requirements_ranges_and_pins_agree(wheel: Path) -> None:
    """pyproject.toml has ranges, requirements.txt the same names, constraints.txt a version in each."""
    ranges = {
        canonicalize_name(requirement.name): requirement
        for requirement in map(Requirement, metadata(wheel).get_all("Requires-Dist", []))
        if requirement.marker is None  # not of an extra
    }
    names = {canonicalize_name(one.name): one.extras for one in map(Requirement, listed("requirements.txt"))}
    assert names == {name: requirement.extras for name, requirement in ranges.items()}
    pinned = pins()
    for name, requirement in ranges.items():
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, but {pinned[name]} is tested"
    tools = {canonicalize_name(Requirement(text).name) for text in listed("requirements-dev.txt")}
    assert tools <= pinned.keys()
    assert not any("=" in text for text in listed("requirements.txt") + listed("requirements-dev.txt"))


@pytest.mark.ray
def test_the_commands_run_in_an_empty_folder(commands: Path, empty: Path) -> None:
    overview = run(commands / "toolformer", "--help", folder=empty)
    assert (overview.returncode, overview.stderr) == (0, "")
    assert "usage: toolformer COMMAND" in overview.stdout
    answer = run(commands / "toolformer-tools", "call", "Calculator", "17 * 3", folder=empty)
    assert (answer.returncode, answer.stdout) == (0, "51\n"), answer.stderr
    demo = run(commands / "toolformer", "demo", folder=empty)
    assert demo.returncode == 2
    assert "the recipe `demo` needs a checkout" in demo.stderr
    assert "toolformer annotate --recipe single_gpu" in demo.stderr
    assert not list(empty.iterdir())


@pytest.mark.ray
def test_a_plan_is_made_with_the_prompts_of_the_wheel(commands: Path, empty: Path, tmp_path: Path) -> None:
    model, texts = tmp_path / "model", tmp_path / "texts.jsonl"
    causal_lm("llama", len(tokenizer("bytes")), positions=2048).save_pretrained(model)
    tokenizer("bytes").save_pretrained(model)
    texts.write_text("\n".join(json.dumps({"text": f"They sold {n} of {2 * n} rolls."}) for n in range(5)))
    options = ["--recipe", "paper", "--corpus", str(texts), "--model", str(model), "--hardware", "A100"]
    planned = run(commands / "toolformer", "plan", *options, "--output", "plan.json", folder=empty)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads((empty / "plan.json").read_text())
    assert plan["texts"] == 5
    assert plan["flops"] > 0
    assert plan["versions"] == versions()


DEEPSPEED = """
import pipeline
from pipeline.cli.recipes import paper
from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings
for stage in range(4):
    config = paper().finetune.model_copy(update={"zero_stage": stage})
    assert deepspeed_settings(config)["zero_optimization"]["stage"] == stage
print(pipeline.__file__)
"""


@pytest.mark.ray
def test_finetune_finds_the_deepspeed_configuration_of_each_stage(commands: Path, empty: Path) -> None:
    found = run(commands / "python", "-c", DEEPSPEED, folder=empty)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(commands.parent), "not the package of the wheel"
