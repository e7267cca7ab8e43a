"""The command `fetch`: stages each model of a run, so that every command reads it without the hub.

In: a FetchConfig. Out: a folder per model with configuration, tokenizer, weights in safetensors and
manifest.json. A folder appears when it is complete and checked; an interrupted command goes on with the files
that are missing, and what is staged stays as it is, until another revision is asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.fetch_config import FetchConfig
from pipeline.fetching.checks import check_tokenizer, check_weights
from pipeline.fetching.conversion import convert
from pipeline.fetching.errors import FetchError
from pipeline.fetching.hub import download
from pipeline.fetching.plan import PlannedModel, gigabytes, plan_fetch, require_room
from pipeline.storage.kinds import STAGED
from pipeline.storage.provenance import versions
from tools_service.base.files import apply_umask, atomic_write_json, now
from tools_service.base.fingerprint import content_digest
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder, require_own
from tools_service.base.staged_models import StagedManifest
from tools_service.base.weights import MANIFEST, file_states

Say = Callable[[str], None]


def fetch(
    config: FetchConfig, show: Callable[[Sequence[PlannedModel]], None], say: Say
) -> list[PlannedModel]:
    """Stage all models; `show` gets the plan before anything is downloaded, `say` what goes on.

    Raises FetchError for a model that cannot be had or is of no use here, and for a full disk; NotOwnError
    for a folder that this command did not write.
    """
    planned = plan_fetch(config)
    show(planned)
    missing = [model for model in planned if model.files]
    for model in missing:
        require_own(model.folder, STAGED)
    if missing:
        require_room(missing)
    for model in planned:
        if model.files:
            _stage(model, say)
        elif model.manifest is None:
            say(f"{model.wanted.name}: checking")
            check_tokenizer(model.folder, model.wanted)
            check_weights(model.folder, model.wanted)
    return planned


def _stage(model: PlannedModel, say: Say) -> None:
    name = model.wanted.name
    with (
        _room(name),
        output_lock(model.folder),
        replacing_folder(model.folder, STAGED) as folder,
    ):
        assert model.files is not None
        for file in model.files.small:
            if not file.endswith(".index.json") or not model.files.pickled:
                shutil.copyfile(_source(model, file), folder / file)
        check_tokenizer(folder, model.wanted)  # before the weights are downloaded
        sources = []
        for file, size in model.files.weights.items():
            say(f"{name}: {file}, {gigabytes(size)}")
            sources.append(_source(model, file))
        if model.files.pickled:
            say(f"{name}: converting")
            convert(name, sources, folder, tied=model.size.tied, indexed=model.indexed)
        else:
            for source in sources:
                _link(source, folder / source.name)
        say(f"{name}: checking")
        check_weights(folder, model.wanted)
        apply_umask(folder)
        atomic_write_json(folder / MANIFEST, _manifest(model, folder, sources).model_dump(mode="json"))
    if model.revision:
        shutil.rmtree(model.download_folder, ignore_errors=True)
    say(f"{name}: staged in {model.folder}")


def _source(model: PlannedModel, file: str) -> Path:
    """A file of the checkpoint on this disk, downloaded and compared with the hub's digest."""
    if model.revision is None:
        return Path(model.wanted.name, file)
    path = download(model.revision, file, model.download_folder)
    expected = model.revision.files[file].sha256
    if expected is not None and content_digest(path) != expected:
        path.unlink()
        raise FetchError(
            f"{model.wanted.name}: {file} was damaged on its way: its SHA-256 is not the hub's; give the "
            "command again"
        )
    return path


def _link(source: Path, target: Path) -> None:
    """Link a downloaded file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _manifest(model: PlannedModel, folder: Path, sources: Sequence[Path]) -> StagedManifest:
    assert model.files is not None
    pickled = [source.name for source in sources] if model.files.pickled else []
    revision = model.revision
    return StagedManifest(
        versions=versions(),
        created=now(),
        source=revision.name if revision else str(Path(model.wanted.name).resolve()),
        revision=revision.asked if revision else None,
        commit=revision.commit if revision else None,
        pickled=tuple(file_states(sources[0].parent, pickled)),
        files=tuple(file_states(folder, [path.name for path in folder.iterdir()])),
    )


@contextmanager
def _room(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FetchError(f"{name}: {error.strerror}: make room, or name another --output") from error
