"""A device `cuda` without a GPU is refused before a command starts; nothing else is."""

from __future__ import annotations

import pytest

from pipeline.cli import devices
from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.devices import require_devices
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

MODEL = ("--model.device", "cuda")
GENERATION = ("--generation.model.device", "cuda")


def check(command: str, *options: str) -> None:
    require_devices(cli.parse(command, options).config)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("annotate", MODEL, "model.device cuda: ray.gpus_per_actor reserves no GPU for it; change that"),
        ("score", MODEL, "model.device cuda: ray.gpus_per_actor reserves no GPU"),
        (
            "finetune",
            MODEL,
            "model.device cuda: use_gpu reserves no GPU for it; change that, or set model.dev",
        ),
        ("serve", GENERATION, "generation.model.device cuda: gpus_per_replica reserves no GPU"),
        (
            "annotate",
            ["--tools.qa.device", "cuda"],
            "tools.qa.device cuda: tools.qa.deployment.gpus reserves",
        ),
        (
            "evaluate",
            ["--generation.tools.mt.device", "cuda", "--ray.actors", "1"],
            "generation.tools.mt.device cuda: generation.tools.mt.deployment.gpus reserves no GPU",
        ),
        (
            "evaluate",
            [*GENERATION, "--ray.actors", "2", "--ray.gpus-per-actor", "0"],
            "generation.model.device cuda: ray.gpus_per_actor reserves no GPU",
        ),
        (
            "annotate",
            ["--tools.wikisearch.encoder.device", "cuda"],
            "tools.wikisearch.encoder.device cuda: tools.wikisearch.deployment.gpus reserves no GPU",
        ),
        ("demo", ["--finetune.model.device", "cuda"], "model.device cuda: use_gpu reserves no GPU"),
    ],
)
def test_a_device_that_contradicts_what_is_reserved(command: str, options: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(command, *options)
    assert str(caught.value).startswith(says)


NO_GPU = [
    ("generate", MODEL),
    ("generate", ("--tools.qa.device", "cuda")),
    ("try", (*MODEL, "--tool", "QA")),
    ("try", ("--tool", "QA", "--tools.qa.device", "cuda")),
    ("harness", GENERATION),
    ("evaluate", GENERATION),
    ("evaluate", (*GENERATION, "--ray.actors", "0")),
    ("annotate", (*MODEL, "--ray.gpus-per-actor", "1")),
    ("finetune", (*MODEL, "--use-gpu")),
]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("command", "options"), NO_GPU)
def test_a_device_that_this_machine_lacks(command: str, options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"device cuda: this machine has no GPU that torch can use"):
        check(command, *options)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("command", "options"), NO_GPU)
def test_with_a_gpu_the_same_is_taken(command: str, options: tuple[str, ...]) -> None:
    check(command, *options)


@pytest.mark.usefixtures("no_gpu")
def test_a_named_cluster_may_have_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*MODEL, "--ray.gpus-per-actor", "1")
    check("annotate", *options, "--ray.address", "head:6379")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check("annotate", *options)


@pytest.mark.usefixtures("no_gpu")
def test_what_is_not_used_and_what_is_not_cuda_is_taken() -> None:
    check("annotate", "--tools.qa.device", "cuda", "--tools", "Calculator")
    check("generate", "--tools.qa.device", "cuda", "--disabled")
    check("generate", "--tools.qa.device", "cuda", "--tools-off", "QA")
    check("plan", *MODEL)
    for command in COMMANDS:
        for recipe in ("demo", "single_gpu", "paper"):
            check(command, "--recipe", recipe)


@pytest.mark.usefixtures("no_gpu")
def test_the_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["annotate", *MODEL]) == 2
    assert capsys.readouterr().err.count("\n") == 1
