"""Models that `toolformer fetch` has staged: where they are, and which name stands for which folder.

In: the value of a configuration field. Out: the folder to load from. A model of the hub that is staged below
HF_HOME is read from there, by every command and on every node, without the hub; any other value stays as it
is. The command itself is in pipeline/fetching. Imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from tools_service.base.files import read_model
from tools_service.base.fingerprint import FileState
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.settings import Frozen
from tools_service.base.weights import MANIFEST

_MAIN = "main"  # branch of a model on the hub if none is named


class StagedManifest(Frozen):
    """manifest.json of a staged model."""

    versions: dict[str, str]
    created: str
    source: str  # name on the hub, or the folder that was converted
    revision: str | None  # as it was asked for; None: main, or of a folder
    commit: str | None  # hash of the revision on the hub
    pickled: tuple[FileState, ...]  # the pickled weights that were converted
    files: tuple[FileState, ...]


def staging_root() -> Path:
    """The folder of all staged models: HF_HOME/toolformer."""
    return Path(constants.HF_HOME, "toolformer")


def staged_name(source: str) -> str:
    """The name of the folder for a model: OWNER--NAME, or that of a local folder."""
    return source.replace("/", "--") if may_be_hub_name(source) else Path(source).resolve().name


def read_staged(folder: Path) -> StagedManifest | None:
    """The manifest of a staged model; None for every other folder."""
    try:
        return read_model(folder / MANIFEST, StagedManifest)
    except (OSError, ValueError):
        return None


def staged_source(path: str, revision: str | None = None) -> str:
    """The folder of the model that `path` names on the hub, if staged in this `revision`; else `path`."""
    if not may_be_hub_name(path):
        return path
    folder = staging_root() / staged_name(path)
    manifest = read_staged(folder)
    if manifest is None or manifest.source != path or not is_revision(manifest, revision):
        return path
    return str(folder)


def is_revision(manifest: StagedManifest, revision: str | None) -> bool:
    """Whether a staged model is what was asked for; None asks for any revision, and gets main."""
    return revision in (None, manifest.revision or _MAIN, manifest.commit)


def hub_name(path: str) -> str:
    """The name on the hub of the staged model in folder `path`; `path` of every other."""
    manifest = read_staged(Path(path))
    return path if manifest is None or manifest.commit is None else manifest.source
