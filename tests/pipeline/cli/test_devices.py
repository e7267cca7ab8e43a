"""A device `cuda` without a GPU and a cluster that is not there are refused before a command starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.cli import devices
from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.devices import look_for_cluster, require_devices
from tools_service.base.errors import ConfigurationError
from tools_service.runtime import address

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


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(address, "_early", {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


ON_RAY: list[tuple[str, tuple[str, ...]]] = [
    ("annotate", ("--output",)),
    ("score", ("--output",)),
    ("evaluate", ("--ray.actors", "1", "--output")),
]


@pytest.mark.parametrize(("command", "options"), ON_RAY)
def test_a_dead_address_is_refused_before_the_command_runs(
    dead: str, tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    arguments = cli.parse(command, ("--ray.address", dead, *options, str(tmp_path / "new")))
    with pytest.raises(ConfigurationError, match=rf"ray.address {dead}: no Ray cluster there"):
        look_for_cluster(arguments.config)


@pytest.mark.parametrize("command", ["annotate", "finetune", "demo"])
def test_so_is_one_in_the_environment(
    dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead)
    option = "--annotate.output" if command == "demo" else "--output"
    arguments = cli.parse(command, (option, str(tmp_path / "new")))
    with pytest.raises(ConfigurationError, match=rf"RAY_ADDRESS {dead}: no Ray cluster there"):
        look_for_cluster(arguments.config)


def test_an_endpoint_names_its_own_option(dead: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^address {dead}: no Ray cluster there"):
        look_for_cluster(cli.parse("serve", ("--address", dead)).config)


def test_results_can_be_shown_without_the_cluster_they_came_from(dead: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    arguments = cli.parse("annotate", ("--ray.address", dead, "--output", str(tmp_path)))
    look_for_cluster(arguments.config)
    host, port = address.split_address(dead, "")
    with pytest.raises(OSError, match="refused"):  # the command that joins has the answer already
        address._early[host, port].result(10)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("plan", ()),
        ("generate", ()),
        ("evaluate", ("--ray.actors", "0")),
        ("annotate", ("--ray.address", "local")),
        ("annotate", ("--ray.address", "auto")),
    ],
)
def test_commands_that_join_no_named_cluster_do_not_look(
    dead: str, monkeypatch: pytest.MonkeyPatch, command: str, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead)
    look_for_cluster(cli.parse(command, options).config)
    assert not address._early


def test_a_dead_address_is_one_line_that_names_the_option(
    dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["annotate", "--ray.address", dead, "--output", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"annotate: --ray.address {dead}: no Ray cluster there" in said
    assert not (tmp_path / "new").exists()
