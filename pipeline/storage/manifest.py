"""manifest.json of an annotation folder: configuration, versions, sessions and counts of a run.

In: a configuration and corpus files. Out: the manifest to start or resume the run with, or ManifestError
with the fields that differ from an earlier run in the folder. docs/outputs.md explains every field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base.config import AnnotateConfig, changed_fields
from pipeline.base.cost import ModelShape
from pipeline.base.records import Cost, Phase
from pipeline.corpus.files import CorpusFile
from pipeline.storage.counts import Counts
from pipeline.storage.provenance import versions
from pipeline.storage.row_files import ROWS, RowFileError, count_in_footers, parquet_files
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write, read_model
from tools_service.base.settings import Frozen
from tools_service.base.staged_models import read_staged, staged_source

MANIFEST = "manifest.json"
OPERATIONAL: dict[str, Any] = {
    "ray": True,
    "output": True,
    "max_failed_share": True,
    "retry_failed": True,
    "max_hours": True,
    "max_gpu_hours": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
}
"""Fields of AnnotateConfig, without those of the tools, that the rows do not depend on."""


def operational(config: AnnotateConfig) -> dict[str, Any]:
    """Fields that the rows do not depend on: a resumed run may change them."""
    return {**OPERATIONAL, "tools": config.tools.operational}


class ManifestError(ConfigurationError):
    """The manifest of a folder is missing, unreadable, unfinished, or belongs to another run."""


class CorpusState(Frozen):
    """Number, size and digest of the corpus files, to detect changes."""

    files: int
    bytes: int | None
    digest: str
    sliced_from: str | None = None  # digest of all corpus files if these files are a slice

    @staticmethod
    def of(files: Sequence[CorpusFile], all_files: Sequence[CorpusFile] | None = None) -> CorpusState:
        """From names and sizes only. `files` may be a slice of `all_files`.

        Earlier runs stored this digest, and a resumed run compares it: it must stay as it is. Modification
        times, which `base.fingerprint` includes, differ between copies of a corpus.
        """
        sizes = [file.size for file in files if file.size is not None]
        listing = "\n".join(sorted(f"{file.name} {file.size}" for file in files))
        digest = hashlib.blake2b(listing.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return CorpusState(
            files=len(files),
            bytes=sum(sizes) if len(sizes) == len(files) else None,
            digest=digest,
            sliced_from=None if all_files is None else CorpusState.of(all_files).digest,
        )


class Session(Frozen):
    """One start of the run. A killed session has no end."""

    started: str
    finished: str | None = None
    wall_s: float | None = None
    gpu_hours: float | None = None
    """GPUs that actors and tools held, integrated over the time."""
    stopped: str | None = None
    """The budget that ended this start; the run is unfinished."""


class Compute(Frozen):
    """Work of the model for the rows, compared with the lower bound (base/cost.py)."""

    shape: ModelShape
    overhead: float  # tokens processed, with padding, per token of the lower bound
    overheads: dict[str, dict[Phase, float]]
    """Overhead by tool and phase; "shared" is the work that all tools of a text share."""
    flops: int  # FLOPs of the work done
    flops_least: int  # FLOPs of the lower bound
    flops_per_s: float | None
    """`flops` over the wall time of all sessions; None if a session was killed."""

    @staticmethod
    def of(counts: Counts, shape: ModelShape, sessions: Sequence[Session]) -> Compute:
        """From the sums over the rows."""
        lower_bound = sum((item.lower_bound for item in counts.work), Cost())
        run = sum((item.run for item in counts.work), Cost())
        overheads: dict[str, dict[Phase, float]] = {}
        for item in counts.work:
            by_phase = overheads.setdefault(item.tool or "shared", {})
            by_phase[item.phase] = _overhead(item.lower_bound, item.run)
        times = [session.wall_s for session in sessions if session.wall_s is not None]
        time_known = len(times) == len(sessions) and sum(times) > 0
        flops = shape.flops(run)
        return Compute(
            shape=shape,
            overhead=_overhead(lower_bound, run),
            overheads=overheads,
            flops=flops,
            flops_least=shape.flops(lower_bound),
            flops_per_s=float(f"{flops / sum(times):.4g}") if time_known else None,
        )


def _overhead(lower_bound: Cost, run: Cost) -> float:
    """Tokens processed per token of the lower bound; 1 if the lower bound is 0."""
    return round((run.tokens + run.padding) / lower_bound.tokens, 4) if lower_bound.tokens else 1.0


class AnnotationManifest(Frozen):
    """The content of manifest.json."""

    RENAMED = {"recipe": "config"}  # noqa: RUF012

    state: Literal["unfinished", "finished"]
    config: AnnotateConfig
    versions: dict[str, str]
    corpus: CorpusState
    sessions: tuple[Session, ...]
    counts: Counts | None = None
    compute: Compute | None = None
    left_out: tuple[str, ...] = ()
    """Paths of corpus.paths that are not read, in sentences with the reason."""
    commit: str | None = None
    """Commit on the hub of a model that `toolformer fetch` has staged."""

    def with_session(self, session: Session) -> AnnotationManifest:
        return self.model_copy(update={"sessions": (*self.sessions, session)})

    def reopened(self) -> AnnotationManifest:
        return self.model_copy(update={"state": "unfinished", "counts": None, "compute": None})

    def completed(self, counts: Counts, shape: ModelShape) -> AnnotationManifest:
        """A finished copy with the counts and the work."""
        compute = Compute.of(counts, shape, self.sessions)
        return self.model_copy(update={"state": "finished", "counts": counts, "compute": compute})

    def write(self, folder: Path) -> None:
        """Replace the manifest of the folder atomically."""
        atomic_write(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> AnnotationManifest:
    """The manifest of an annotation folder, finished or not. ManifestError if it has none."""
    path = folder / MANIFEST
    try:
        return read_model(path, AnnotationManifest)
    except FileNotFoundError as error:
        raise ManifestError(f"{folder}: not a folder that annotate wrote, there is no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path}: not a manifest of this version of annotate: {brief(error)}. Restore the file, or "
            "annotate into another folder"
        ) from error


def read_finished(folder: Path) -> AnnotationManifest:
    """The manifest of a finished annotation folder with all of its rows. ManifestError otherwise."""
    manifest = read_manifest(folder)
    if manifest.state != "finished":
        raise ManifestError(f"{folder}: not finished; give its annotate command again to resume it")
    if problem := missing_rows(folder, manifest):
        raise ManifestError(
            f"{problem}. Restore them, or give its annotate command again, which annotates what is missing"
        )
    return manifest


def missing_rows(folder: Path, manifest: AnnotationManifest) -> str | None:
    """What is wrong with the number of rows on disk, by the manifest of a finished run; else None."""
    if manifest.counts is None:
        return f"{folder / MANIFEST}: finished, but without counts"
    try:
        rows = count_in_footers(folder)
    except RowFileError as error:
        return str(error)
    if rows == manifest.counts.texts:
        return None
    return f"{folder}: finished with {manifest.counts.texts} texts, but {folder / ROWS} has {rows} rows"


def begin(
    folder: Path,
    config: AnnotateConfig,
    files: Sequence[CorpusFile],
    all_files: Sequence[CorpusFile] | None = None,
) -> AnnotationManifest:
    """The manifest to start or resume a run with; `files` may be a slice of `all_files`.

    Raises ManifestError, naming the fields, if the folder has rows of another configuration or corpus.
    """
    corpus = CorpusState.of(files, all_files)
    staged = read_staged(Path(staged_source(config.model.path)))
    commit = staged.commit if staged is not None else None
    if not (folder / MANIFEST).exists():
        if parquet_files(folder / ROWS):
            raise ManifestError(
                f"{folder}: there are rows but no {MANIFEST}; choose another output or remove it"
            )
        return AnnotationManifest(
            state="unfinished",
            config=config,
            versions=versions(),
            corpus=corpus,
            sessions=(),
            commit=commit,
        )
    earlier = read_manifest(folder)
    changes = changed_fields(earlier.config, config, ignore=operational(config))
    if not changes and earlier.corpus != corpus:
        old = f"{earlier.corpus.files} of {earlier.corpus.bytes} bytes"
        changes = [f"the files of the corpus: {old} → {corpus.files} of {corpus.bytes} bytes"]
    if not changes and earlier.commit and commit and earlier.commit != commit:
        changes = [f"the commit of model.path = {config.model.path}: {earlier.commit} → {commit}"]
    if changes:
        raise ManifestError(
            f"{folder} holds a run with another configuration; choose another output, or remove the "
            f"folder to start over. Different: {'; '.join(changes)}"
        )
    return earlier.model_copy(
        update={"config": config, "versions": versions(), "commit": commit or earlier.commit}
    )
