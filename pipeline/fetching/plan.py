"""What there is to do for each model, and how large it is, before anything is downloaded.

In: a FetchConfig. Out: a `PlannedModel` each. The hub is asked for names and sizes of files; of the files
only config.json and an index are read, in a temporary folder. Nothing is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.base.fetch_config import FetchConfig
from pipeline.fetching.checks import ModelSize, size_of
from pipeline.fetching.errors import FetchError
from pipeline.fetching.hub import Revision, download, find_revision
from pipeline.fetching.sources import Files, files_of, index_of, weight_map
from pipeline.fetching.wanted import WantedModel, wanted_models
from tools_service.base.adapters import read_adapter
from tools_service.base.files import resolved
from tools_service.base.model_folder import check_model_folder, may_be_hub_name
from tools_service.base.staged_models import (
    StagedManifest,
    is_revision,
    read_staged,
    staged_name,
    staging_root,
)
from tools_service.base.weights import WeightsError, require_unchanged


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model, where it comes from, and the folder for it.

    `files` is None for what is there already: staged (`manifest`), or a folder that is used as it is.
    `revision` is None for a folder. `indexed` has the tensors that an index names, each with its file.
    """

    wanted: WantedModel
    folder: Path
    size: ModelSize
    manifest: StagedManifest | None = None
    revision: Revision | None = None
    files: Files | None = None
    indexed: dict[str, str] | None = None

    @property
    def download_folder(self) -> Path:
        """Where a download is kept until the model is staged."""
        return self.folder.with_name(f".{self.folder.name}.download")

    @property
    def downloaded_bytes(self) -> int:
        """Bytes that an interrupted download has left."""
        return sum(path.stat().st_size for path in self.download_folder.rglob("*") if path.is_file())

    @property
    def download_bytes(self) -> int:
        """Bytes still to be downloaded, at most."""
        return max(0, self.files.bytes - self.downloaded_bytes) if self.files and self.revision else 0


def plan_fetch(config: FetchConfig) -> list[PlannedModel]:
    """What there is to do for each model. Raises FetchError for the first that cannot be staged."""
    if config.revision is not None and len(config.models) != 1:
        raise FetchError("revision: name the one model that it is of, with --models")
    root = resolved(config.output) if config.output else staging_root()
    planned = []
    for wanted in wanted_models(config):
        if may_be_hub_name(wanted.name):
            planned.append(_plan_hub(wanted, root / staged_name(wanted.name), config.revision))
        else:
            planned.append(_plan_folder(wanted, root, config.revision))
    folders = [model.folder for model in planned if model.files]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise FetchError(f"output {min(twice)}: two models would be staged there; name one of them alone")
    return planned


def require_room(missing: Sequence[PlannedModel]) -> None:
    """Raise FetchError if the disk has no room for the models that are `missing`."""
    needed, free, root = disk_bytes(missing), free_bytes(missing), missing[0].folder.parent
    if needed > free:
        raise FetchError(
            f"output {root}: staging needs {gigabytes(needed)} there and {gigabytes(free)} are free; make "
            "room, or name another --output"
        )


def disk_bytes(missing: Sequence[PlannedModel]) -> int:
    """The most bytes that the disk has to take: results so far, and the model that is being staged."""
    done = most = 0
    for model in missing:
        if model.files:
            most = max(most, done + model.files.peak_bytes - model.downloaded_bytes)
            done += model.files.bytes
    return most


def free_bytes(missing: Sequence[PlannedModel]) -> int:
    """Bytes that are free where the models will be."""
    root = missing[0].folder.parent
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.is_dir())).free


def gigabytes(count: int) -> str:
    """A number of bytes in GB, MB or kB."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if count >= s), ("kB", 1e3))
    return f"{count / size:.1f} {unit}"


def _plan_hub(wanted: WantedModel, folder: Path, asked: str | None) -> PlannedModel:
    manifest = read_staged(folder)
    if manifest is not None and manifest.source != wanted.name:
        raise FetchError(f"output {folder}: it holds {manifest.source}; name another --output")
    if manifest is not None and is_revision(manifest, asked) and _is_whole(folder, manifest):
        return PlannedModel(wanted=wanted, folder=folder, size=size_of(folder, wanted), manifest=manifest)
    revision = find_revision(wanted.name, asked)
    sizes = {file.name: file.size for file in revision.files.values()}
    with TemporaryDirectory() as temporary:
        index = index_of(sizes)
        path = download(revision, index, Path(temporary)) if index else None
        files = files_of(wanted.name, sizes, path)
        indexed = weight_map(wanted.name, path) if path else None
        download(revision, "config.json", Path(temporary))
        size = size_of(Path(temporary), wanted)
    return PlannedModel(
        wanted=wanted, folder=folder, size=size, revision=revision, files=files, indexed=indexed
    )


def _plan_folder(wanted: WantedModel, root: Path, asked: str | None) -> PlannedModel:
    if asked is not None:
        raise FetchError(f"revision: {wanted.name} is a folder, which has none; leave it out")
    source = Path(wanted.name)
    check_model_folder(wanted.name, wanted.field, "config", FetchError)
    if adapter := read_adapter(wanted.name, wanted.field, FetchError):
        raise FetchError(f"{wanted.name}: it is an adapter; stage its base with --models {adapter.base}")
    sizes = {path.name: path.stat().st_size for path in source.iterdir() if path.is_file()}
    index = index_of(sizes)
    files = files_of(wanted.name, sizes, source / index if index else None)
    size = size_of(source, wanted)
    if not files.pickled:
        return PlannedModel(wanted=wanted, folder=source, size=size)
    folder = root / staged_name(wanted.name)
    manifest = read_staged(folder)
    if manifest is not None and manifest.source != str(source.resolve()):
        raise FetchError(f"output {folder}: it holds {manifest.source}; name another --output")
    if manifest is not None and _is_whole(folder, manifest) and _are_unchanged(manifest, source):
        return PlannedModel(wanted=wanted, folder=folder, size=size, manifest=manifest)
    indexed = weight_map(wanted.name, source / index) if index else None
    return PlannedModel(wanted=wanted, folder=folder, size=size, files=files, indexed=indexed)


def _is_whole(folder: Path, manifest: StagedManifest) -> bool:
    try:
        require_unchanged(folder, manifest.files)
    except WeightsError:
        return False
    return True


def _are_unchanged(manifest: StagedManifest, source: Path) -> bool:
    return all(
        (source / state.name).is_file() and state.matches(source / state.name) for state in manifest.pickled
    )
