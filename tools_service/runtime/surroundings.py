"""What of this machine would keep Ray from starting, and the way round it.

Out: options of ray.init for a local Ray, and changed environment variables. Ray's processes meet at
sockets in its temporary folder, show each other a token from the home folder, and share memory in
/dev/shm; each may be unusable in a container. Nothing is changed where Ray's own choice works.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# A path of a socket has at most 107 bytes (unix(7)). Below its folder, Ray makes
# session_2026-11-28_03-40-24_361000_4194304/sockets/plasma_store.0
MAX_SOCKET_PATH = 107
_SOCKET_BYTES = len("/session_2026-11-28_03-40-24_361000_4194304/sockets/plasma_store.0")
_STORE_BYTES = 200 * 2**20  # of an object store on disk; Ray wants 75 MiB at least
_AUTH_MODES = ("token", "disabled", "k8s")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SurroundingsError(ConfigurationError):
    """This machine, or a variable of its environment, keeps Ray from starting."""


def local_ray_options() -> dict[str, Any]:
    """Return the options with which ray.init works here. SurroundingsError if none would."""
    folder = ray_folder()
    os.environ["RAY_TMPDIR"] = str(folder.parent)  # all of Ray's processes follow it
    provide_token()
    if _free_bytes(SHARED_MEMORY) >= _STORE_BYTES:
        return {}
    logger.warning("%s has no room: Ray keeps its objects in %s", SHARED_MEMORY, folder)
    return {"_plasma_directory": str(folder), "object_store_memory": _STORE_BYTES}


def ray_folder() -> Path:
    """Return Ray's own folder of temporary files, or another if that one cannot hold its sockets."""
    own = f"ray-{os.getuid()}"
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    problems: list[str] = []
    for parent in dict.fromkeys((named, "/tmp", f"/tmp/{own}", f"/var/tmp/{own}")):
        folder = Path(parent, "ray").absolute()
        problem = _problem(folder)
        if problem is None:
            if problems:
                logger.warning("%s; Ray uses %s", problems[0], folder)
            return folder
        problems.append(problem)
    raise SurroundingsError(
        f"Ray needs a folder for its sockets: {'; '.join(problems)}; set RAY_TMPDIR to one"
    )


def require_known_auth_mode() -> None:
    """SurroundingsError if RAY_AUTH_MODE has a value at which Ray would abort the process."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in _AUTH_MODES:
        raise SurroundingsError(f"RAY_AUTH_MODE = {mode!r}: it is one of {', '.join(_AUTH_MODES)}")


def pass_by_proxies() -> None:
    """Let no request to this machine itself take the proxy that the environment names for others."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in os.environ.get(variable, "").split(",") if host.strip()]
        if "*" not in hosts:
            missing = [host for host in _LOOPBACK if host not in hosts]
            os.environ[variable] = ",".join(hosts + missing)


def too_long_for_sockets(folder: Path) -> str | None:
    """Return why the sockets of a Ray in `folder` would have too long paths; None if they fit."""
    length = len(os.fsencode(folder)) + _SOCKET_BYTES
    if length <= MAX_SOCKET_PATH:
        return None
    return f"{folder} is too long: its sockets' paths have {length} bytes, at most {MAX_SOCKET_PATH} work"


def _problem(folder: Path) -> str | None:
    """Return why Ray cannot work in `folder`; None if it can."""
    if problem := too_long_for_sockets(folder):
        return problem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder}: {error.strerror or error}"


def provide_token() -> None:
    """Let Ray find a token: the user's own in the home folder, made here if there is none (Ray's file would
    be readable by everyone), or one for this process's cluster alone if the home folder can keep none."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        token = Path.home() / ".ray" / "auth_token"
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            with tempfile.NamedTemporaryFile("w", dir=token.parent) as file:  # for its owner only
                print(secrets.token_hex(32), end="", file=file, flush=True)
                with suppress(FileExistsError):
                    os.link(file.name, token)
        usable = bool(token.read_text(encoding="utf-8").strip())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: this user has no home
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0
