"""What keeps Ray from starting is gone round, or said in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tools_service.runtime import surroundings
from tools_service.runtime.surroundings import (
    MAX_SOCKET_PATH,
    SurroundingsError,
    local_ray_options,
    pass_by_proxies,
    ray_folder,
    require_known_auth_mode,
)

pytestmark = pytest.mark.unit

VARIABLES = (
    "RAY_TMPDIR",
    "TMPDIR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "no_proxy",
    "NO_PROXY",
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_works_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setattr(surroundings, "MAX_SOCKET_PATH", 4_096)
    monkeypatch.setenv(variable, str(tmp_path))
    assert ray_folder() == tmp_path / "ray"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "relative")
    assert ray_folder() == tmp_path / "relative" / "ray"


@pytest.mark.parametrize("length", [60, 90, 107, 108, 200, 250])
@pytest.mark.parametrize("letter", ["x", "é"])
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_whose_sockets_have_too_long_a_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, letter: str, length: int
) -> None:
    monkeypatch.setenv(variable, f"/tmp/{letter * (length // len(letter.encode()))}")
    folder = ray_folder()
    assert folder == Path("/tmp/ray")
    assert len(os.fsencode(folder)) + surroundings._SOCKET_BYTES <= MAX_SOCKET_PATH
    assert not Path(os.environ[variable]).exists()


@pytest.mark.parametrize("parent", ["/proc/nowhere", "/dev/null", "/dev/null/x", "/sys/x"])
def test_a_folder_that_cannot_be_written_is_not_used(monkeypatch: pytest.MonkeyPatch, parent: str) -> None:
    monkeypatch.setenv("TMPDIR", parent)
    assert ray_folder() == Path("/tmp/ray")


def test_a_machine_without_any_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "MAX_SOCKET_PATH", 50)
    with pytest.raises(
        SurroundingsError, match=r"Ray needs a folder for its sockets: /tmp/ray is too long.*RAY_TMPDIR"
    ):
        ray_folder()


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere", "", None])
def test_without_a_home_the_token_is_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as Python says it

    if home is None:
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setattr(Path, "home", lambda: Path(home or "/dev/null"))
    local_ray_options()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN_PATH", "/a/file"), ("RAY_AUTH_TOKEN", "mine")],
)
def test_a_token_of_the_users_own_is_kept(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv(name, value)
    local_ray_options()
    assert os.environ.get("RAY_AUTH_TOKEN") == ("mine" if name == "RAY_AUTH_TOKEN" else None)


def test_a_home_that_works_keeps_the_token(tmp_path: Path) -> None:
    local_ray_options()
    assert "RAY_AUTH_TOKEN" not in os.environ
    token = tmp_path / ".ray" / "auth_token"
    made = token.read_text()
    assert len(made) == 64
    assert token.stat().st_mode & 0o777 == 0o600, "others could run code on the cluster"
    local_ray_options()
    assert token.read_text() == made
    assert list(token.parent.iterdir()) == [token]
    token.write_text("\n")
    local_ray_options()
    assert "RAY_AUTH_TOKEN" in os.environ  # an empty file is no token


@pytest.mark.parametrize(
    ("free", "on_disk"), [(0, True), (64 * 2**20, True), (2**30, False), (OSError("no such folder"), True)]
)
def test_objects_go_to_disk_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, free: int | OSError, on_disk: bool
) -> None:
    def usage(_: Path) -> Any:
        if isinstance(free, OSError):
            raise free
        return shutil._ntuple_diskusage(free, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    options = local_ray_options()
    assert options.keys() == ({"_plasma_directory", "object_store_memory"} if on_disk else set())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "localhost,127.0.0.1,::1"),
        ("", "localhost,127.0.0.1,::1"),
        ("example.org", "example.org,localhost,127.0.0.1,::1"),
        (" a , ,127.0.0.1", "a,127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_proxies_are_passed_by_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, variable: str, before: str | None, after: str
) -> None:
    if before is not None:
        monkeypatch.setenv(variable, before)
    pass_by_proxies()
    pass_by_proxies()
    assert os.environ[variable] == after


@pytest.mark.parametrize("mode", ["", "bogus", "tokens", "1", "none"])
def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(SurroundingsError, match=r"RAY_AUTH_MODE = .*token, disabled"):
        require_known_auth_mode()


@pytest.mark.parametrize("mode", ["token", "TOKEN", "disabled", None])
def test_known_modes_pass(monkeypatch: pytest.MonkeyPatch, mode: str | None) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    require_known_auth_mode()
