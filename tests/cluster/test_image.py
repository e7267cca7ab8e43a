"""cluster/Dockerfile and .dockerignore, parsed as Docker does: stages, files, users, versions."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cluster.manifests import ROOT, documents

pytestmark = pytest.mark.unit


@dataclass
class Stage:
    """A FROM and the instructions after it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.steps if name == instruction]


def stages() -> dict[str, Stage]:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    parsed: dict[str, Stage] = {}
    for line in filter(None, lines):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, name = rest.split(" AS ")
            parsed[name] = Stage(base, name)
        else:
            list(parsed.values())[-1].steps.append((instruction, rest))
    return parsed


def lineage(name: str) -> list[Stage]:
    """A stage and the stages it is built on, the base first."""
    all_stages, chain = stages(), []
    while name in all_stages:
        chain.insert(0, all_stages[name])
        name = all_stages[name].base
    return chain


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes the file `path`: the last line that matches it or one of its
    folders."""
    out = False
    parents = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 2)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!").removeprefix("**/")
            anywhere = "**/" in line
            if any(fnmatch(p.rpartition("/")[2] if anywhere else p, pattern) for p in parents):
                out = not line.startswith("!")
    return out


def test_both_targets_come_from_one_base_of_a_fixed_version_and_the_project_s_python() -> None:
    bases = {stage.base for stage in stages().values() if stage.base not in stages()}
    (base,) = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert {"cpu", "cuda"} <= stages().keys()
    assert [stage.name for stage in lineage("cpu")][:-1] == [stage.name for stage in lineage("cuda")][:-1]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_the_manifests_user_and_nothing_follows_as_root(target: str) -> None:
    steps = [step for stage in lineage(target) for step in stage.steps]
    users = [argument for name, argument in steps if name == "USER"]
    (job,) = documents(ROOT / "ray_job.yaml")
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert users == [f"{pod['runAsUser']}:{pod['runAsGroup']}"]
    after = steps[[name for name, _ in steps].index("USER") :]
    assert {name for name, _ in after} <= {"USER", "CMD", "ENV", "COPY"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_has_what_the_requirements_say(target: str) -> None:
    (install,) = [run for run in stages()[f"install-{target}"].arguments("RUN") if "pip install" in run]
    assert install.count("--constraint constraints.txt") == install.count("pip install --no-cache-dir")
    assert "--requirement requirements.txt" in install
    gpu = ["pip uninstall --yes faiss-cpu", "--requirement requirements-gpu.txt"]
    assert [text in install for text in gpu] == [target == "cuda"] * 2
    assert ("whl/cpu" in install) == (target == "cpu")
    assert f"--from=install-{target} /opt/venv /opt/venv" in stages()[target].arguments("COPY")


def test_every_copied_path_exists_and_is_let_into_the_build() -> None:
    for stage in stages().values():
        for copy in stage.arguments("COPY"):
            if "--from=" in copy:
                assert re.search(r"--from=(\S+)", copy)[1] in stages()  # type: ignore[index]
                continue
            *sources, _target = [word for word in copy.split() if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                files = [path for path in (ROOT / source).rglob("*") if path.is_file()] or [ROOT / source]
                names = [
                    path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
                ]
                assert not all(map(ignored, names)), source


def test_the_package_is_whole_and_nothing_else_is_let_in() -> None:
    copied = " ".join(stages()["code"].arguments("COPY"))
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert all(name.rstrip("*") in copied for name in packages["include"])
    for path in (
        ".git/config",
        ".venv/bin/python",
        "runs/demo/x",
        "tests/conftest.py",
        "docs/method.md",
        "secret.env",
    ):
        assert ignored(path), path
    for path in (
        "tools_service/syntax/prompt_files/qa.txt",
        "demo/pages/x.jsonl",
        "pipeline/finetuning/deepspeed/zero3.json",
        "cluster/paper.sh",
    ):
        assert not ignored(path), path
    assert ignored("pipeline/engine/__pycache__/model.cpython-311.pyc")


def test_the_manifests_name_an_image_of_each_target() -> None:
    (job,) = documents(ROOT / "ray_job.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    named = {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }
    images = {name: group["template"]["spec"]["containers"][0]["image"] for name, group in named.items()}
    tags = {name: image.rpartition("-")[2] for name, image in images.items()}
    assert tags == {"head": "cpu", "gpu": "cuda", "tools": "cuda", "cpu": "cpu"}
    built = re.findall(r"--target (\w+) +--tag (\S+)", Path(ROOT / "cluster" / "Dockerfile").read_text())
    assert {tag for _, tag in built} == set(images.values())
    assert all(tag.endswith(target) for target, tag in built)
