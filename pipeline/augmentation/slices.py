"""Checks that the annotated slices of a corpus belong together and are complete.

In: the annotation folders of a merge and their manifests. Out: nothing, or a SliceError that names
the folders, slices or fields at fault. Slices belong together if they are slices of one list of
files. Annotations that are not slices can be merged with any others; merge.py checks that no two
share a text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

from pipeline.base.config import changed_fields
from pipeline.storage.manifest import OPERATIONAL, AnnotationManifest
from tools_service.base.errors import ConfigurationError

_MAX_SHOWN = 10


class SliceError(ConfigurationError):
    """Slices of different runs, a slice that is given twice, or a missing slice."""


def expand(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The folders, each glob replaced by the folders it matches. SliceError if it matches none."""
    folders: list[Path] = []
    for path in paths:
        if path.exists() or not any(sign in str(path) for sign in "*?["):
            folders.append(path)
            continue
        matches = sorted(match for match in map(Path, glob(str(path), recursive=True)) if match.is_dir())
        if not matches:
            raise SliceError(f"annotations {path}: no folder matches")
        folders += matches
    return tuple(dict.fromkeys(folders))


def require_together(sources: Mapping[Path, AnnotationManifest], missing: bool = False) -> None:
    """SliceError unless each corpus has all its slices, each once, with equal configurations.

    Missing slices are allowed if `missing` is true.
    """
    corpora: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, manifest in sources.items():
        if manifest.config.corpus.slice is not None:
            corpora[manifest.corpus.sliced_from or ""].append(folder)
    for folders in corpora.values():
        _require_same_config(folders, sources)
        _require_unique(folders, sources)
        if not missing:
            _require_complete(folders, sources, others=len(corpora) - 1)


def _require_same_config(folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest]) -> None:
    first = sources[folders[0]].config
    for folder in folders[1:]:
        config = sources[folder].config
        if first.corpus.slice_index_and_count[1] != config.corpus.slice_index_and_count[1]:
            raise SliceError(
                f"annotations: {folders[0]} is slice {first.corpus.slice}, {folder} is {config.corpus.slice} "
                "of the same files; merge slices with one slice count"
            )
        same_slice = config.corpus.model_copy(update={"slice": first.corpus.slice})
        comparable = config.model_copy(update={"corpus": same_slice})
        if fields := changed_fields(first, comparable, ignore=OPERATIONAL):
            raise SliceError(
                f"annotations: {folders[0]} and {folder} are slices with different configurations: "
                f"{'; '.join(fields)}"
            )


def _require_unique(folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest]) -> None:
    folder_by_index: dict[int, Path] = {}
    for folder in folders:
        corpus = sources[folder].config.corpus
        other = folder_by_index.setdefault(corpus.slice_index_and_count[0], folder)
        if other != folder:
            raise SliceError(
                f"annotations: {other} and {folder} are both slice {corpus.slice}; name one of them"
            )


def _require_complete(
    folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest], others: int
) -> None:
    """`others` is the number of other corpora that have slices."""
    slices = [sources[folder].config.corpus.slice_index_and_count for folder in folders]
    count = slices[0][1]
    absent = [f"{index}/{count}" for index in range(count) if (index, count) not in slices]
    if not absent:
        return
    shown = ", ".join(absent[:_MAX_SHOWN])
    if len(absent) > _MAX_SHOWN:
        shown += f" and {len(absent) - _MAX_SHOWN} more"
    if others:
        shown += "; other folders are slices of another list of files"
    raise SliceError(
        f"annotations: of the corpus of {folders[0]}, {len(absent)} of {count} slices are missing: {shown}. "
        "Annotate them, or merge without them with --missing-slices"
    )
