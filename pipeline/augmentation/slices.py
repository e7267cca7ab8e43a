"""Checks that the annotated slices of a corpus belong together and are complete.

In: the annotation folders of a merge and their manifests. Out: nothing, or a SliceError that names the
folders, slices or fields at fault. Slices belong together if they are slices of one list of files.
Other annotations can be merged with any; merge.py checks that no two share a text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

from pipeline.base.config import AnnotateConfig, SameTexts, changed_fields
from pipeline.storage.manifest import AnnotationManifest, operational
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


def require_together(
    sources: Mapping[Path, AnnotationManifest], missing: bool = False, same_texts: SameTexts = "refuse"
) -> None:
    """SliceError unless each corpus has its slices once and with equal configurations, and all of them.

    `missing` slices are allowed if it is true. If the calls of equal texts are united, a corpus may have its
    slices once for each configuration.
    """
    corpora: defaultdict[tuple[str, str], dict[Path, AnnotateConfig]] = defaultdict(dict)
    for folder, manifest in sources.items():
        if manifest.config.corpus.slice is not None:
            round_ = _identity(manifest.config) if same_texts == "unite" else ""
            corpora[manifest.corpus.sliced_from or "", round_][folder] = manifest.config
    for slices in corpora.values():
        _require_same_config(slices)
        _require_unique(slices)
        if not missing:
            _require_complete(slices, others=len(corpora) - 1)


def _identity(config: AnnotateConfig) -> str:
    """What all slices of one annotation have in common."""
    return config.model_dump_json(exclude={**operational(config), "corpus": {"slice"}})


def _require_same_config(slices: Mapping[Path, AnnotateConfig]) -> None:
    first_folder, first = next(iter(slices.items()))
    for folder, config in slices.items():
        if first.corpus.slice_index_and_count[1] != config.corpus.slice_index_and_count[1]:
            raise SliceError(
                f"annotations: {first_folder} is slice {first.corpus.slice}, {folder} is "
                f"{config.corpus.slice} of the same files; merge slices with one slice count"
            )
        if fields := changed_fields(first, config, ignore={**operational(config), "corpus": {"slice"}}):
            raise SliceError(
                f"annotations: {first_folder} and {folder} are slices with different configurations: "
                + "; ".join(fields)
            )


def _require_unique(slices: Mapping[Path, AnnotateConfig]) -> None:
    folder_by_index: dict[int, Path] = {}
    for folder, config in slices.items():
        other = folder_by_index.setdefault(config.corpus.slice_index_and_count[0], folder)
        if other != folder:
            raise SliceError(
                f"annotations: {other} and {folder} are both slice {config.corpus.slice}; name one of them"
            )


def _require_complete(slices: Mapping[Path, AnnotateConfig], others: int) -> None:
    """`others` is the number of other corpora that have slices."""
    present = {config.corpus.slice_index_and_count for config in slices.values()}
    count = next(iter(present))[1]
    absent = [f"{index}/{count}" for index in range(count) if (index, count) not in present]
    if not absent:
        return
    shown = ", ".join(absent[:_MAX_SHOWN])
    if len(absent) > _MAX_SHOWN:
        shown += f" and {len(absent) - _MAX_SHOWN} more"
    if others:
        shown += "; other folders are slices of another list of files"
    raise SliceError(
        f"annotations: of the corpus of {next(iter(slices))}, {len(absent)} of {count} slices are missing: "
        f"{shown}. Annotate them, or merge without them with --missing-slices"
    )
