"""manifest.json of an annotation folder: what was asked, with which versions, and what became of every text.

The counts are sums over the rows on disk, streamed, so they are exact however often the run was interrupted.
docs/outputs.md explains every field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.base.config import AnnotateConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import Cost, Phase
from pipeline.corpus.files import CorpusFile
from pipeline.storage.counts import Counts
from pipeline.storage.provenance import versions
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write
from tools_service.base.settings import Frozen

MANIFEST = "manifest.json"
# What the rows do not depend on: a run may go on with other values of these.
_OPERATIONAL: dict[str, Any] = {
    "ray": True,
    "output": True,
    "max_failed_share": True,
    "retry_failed": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
    "tools": {
        "service": True,
        "cache_size": True,
        "wikisearch": {
            "index": True,
            "encoder": {"batch_size", "device"},
            "vectors": {"gpu"},
            "deployment": True,
        },
        "qa": {"max_batch_tokens", "device", "deployment"},
        "calculator": {"deployment"},
        "calendar": {"deployment"},
        "mt": {"max_batch_tokens", "device", "deployment"},
    },
}


class ManifestError(ConfigurationError):
    """A folder whose manifest is missing, unreadable, unfinished, or of another run."""


class CorpusState(Frozen):
    """The files that were read, to notice that they have changed."""

    files: int
    bytes: int | None
    digest: str
    sliced_from: str | None = None
    """Digest of all files of the corpus, where these are those of a slice."""

    @staticmethod
    def of(shards: Sequence[CorpusFile], whole: Sequence[CorpusFile] | None = None) -> CorpusState:
        """From names and sizes; contents are not read. `whole` is the corpus that `shards` are a slice of."""
        sizes = [shard.size for shard in shards]
        listing = "\n".join(sorted(f"{shard.name} {shard.size}" for shard in shards))
        known = [size for size in sizes if size is not None]
        digest = hashlib.blake2b(listing.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return CorpusState(
            files=len(sizes),
            bytes=sum(known) if len(known) == len(sizes) else None,
            digest=digest,
            sliced_from=None if whole is None else CorpusState.of(whole).digest,
        )


class Session(Frozen):
    """One start of the run. A session that was killed has no end."""

    started: str
    finished: str | None = None
    wall_s: float | None = None


class Compute(Frozen):
    """What the model ran for the rows, beside the least there was to do (planning.py)."""

    shape: ModelShape
    overhead: float
    """Tokens fed, padding included, per token of the least work."""
    overheads: dict[str, dict[Phase, float]]
    """The same by tool and phase; "shared" is what all tools of a text have in common."""
    flops: int
    """Of what was run."""
    flops_least: int
    flops_per_s: float | None
    """Of what was run, over the wall time of all sessions; None if one was killed, and its time unknown."""

    @staticmethod
    def of(counts: Counts, shape: ModelShape, sessions: Sequence[Session]) -> Compute:
        """From sums over the rows."""
        least = sum((part.lower_bound for part in counts.work), Cost())
        run = sum((part.run for part in counts.work), Cost())
        overheads: dict[str, dict[Phase, float]] = {}
        for part in counts.work:
            overheads.setdefault(part.tool or "shared", {})[part.phase] = _overhead(
                part.lower_bound, part.run
            )
        times = [session.wall_s for session in sessions if session.wall_s is not None]
        known = len(times) == len(sessions) and sum(times) > 0
        return Compute(
            shape=shape,
            overhead=_overhead(least, run),
            overheads=overheads,
            flops=shape.flops(run),
            flops_least=shape.flops(least),
            flops_per_s=float(f"{shape.flops(run) / sum(times):.4g}") if known else None,
        )


def _overhead(least: Cost, run: Cost) -> float:
    """One where there was nothing to do."""
    return round((run.tokens + run.padding) / least.tokens, 4) if least.tokens else 1.0


class AnnotationManifest(Frozen):
    """manifest.json, typed."""

    state: Literal["unfinished", "finished"]
    recipe: AnnotateConfig
    versions: dict[str, str]
    corpus: CorpusState
    sessions: tuple[Session, ...]
    counts: Counts | None = None
    compute: Compute | None = None

    def with_session(self, session: Session) -> AnnotationManifest:
        """The same with one session more."""
        return self.model_copy(update={"sessions": (*self.sessions, session)})

    def reopened(self) -> AnnotationManifest:
        """The same, unfinished again."""
        return self.model_copy(update={"state": "unfinished", "counts": None, "compute": None})

    def completed(self, counts: Counts, shape: ModelShape) -> AnnotationManifest:
        """The same, finished, with what became of the texts and what that took."""
        compute = Compute.of(counts, shape, self.sessions)
        return self.model_copy(update={"state": "finished", "counts": counts, "compute": compute})

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest, whole."""
        atomic_write(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> AnnotationManifest:
    """The manifest of a folder that annotate wrote, finished or not. ManifestError if there is none."""
    path = folder / MANIFEST
    try:
        return AnnotationManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(f"{folder}: not a folder that annotate wrote, there is no {MANIFEST}") from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ManifestError(f"{path}: not a manifest of this version of annotate: {error}") from error


def begin(
    folder: Path,
    config: AnnotateConfig,
    shards: Sequence[CorpusFile],
    whole: Sequence[CorpusFile] | None = None,
) -> AnnotationManifest:
    """The manifest to go on with: a new one, or that of an earlier run of the same recipe on the same files
    (a slice of the `whole` corpus, or all of it).

    ManifestError, naming the fields, if rows of another recipe are in the folder.
    """
    manifest = AnnotationManifest(
        state="unfinished",
        recipe=config,
        versions=versions(),
        corpus=CorpusState.of(shards, whole),
        sessions=(),
    )
    if (folder / MANIFEST).exists():
        before = read_manifest(folder)
        if changed := _differences(before, manifest):
            raise ManifestError(
                f"{folder} was begun with another recipe; choose another output, or remove it to start over. "
                f"Different: {'; '.join(changed)}"
            )
        return manifest.model_copy(
            update={name: getattr(before, name) for name in ("state", "sessions", "counts", "compute")}
        )
    if parquet_files(folder / ROWS):
        raise ManifestError(f"{folder}: there are rows but no {MANIFEST}; choose another output or remove it")
    return manifest


def _differences(before: AnnotationManifest, after: AnnotationManifest) -> list[str]:
    """``field: before → now`` for everything the rows depend on."""
    fields = differing(before.recipe, after.recipe)
    if not fields and before.corpus != after.corpus:
        fields.append(
            f"the files of the corpus: {before.corpus.files} of {before.corpus.bytes} bytes → "
            f"{after.corpus.files} of {after.corpus.bytes} bytes"
        )
    return fields


def differing(before: AnnotateConfig, after: AnnotateConfig) -> list[str]:
    """``field: before → after`` for what the rows of equal files would depend on."""
    then, now = (_flat(recipe.model_dump(mode="json", exclude=_OPERATIONAL)) for recipe in (before, after))
    return [
        f"{name}: {then.get(name)!r} → {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
