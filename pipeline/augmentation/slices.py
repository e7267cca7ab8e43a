"""Annotations of a corpus that many jobs did, a slice each, as one: what fits together and what is missing.

In: the folders that a merge was given, and their manifests. Out: nothing, or an error that says which
folders, slices or fields do not fit. Slices belong together if they are of one list of files. Annotations
that are no slices fit with anything, as long as they share no text (augmentation.py looks at that).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

from pipeline.storage.manifest import AnnotationManifest, differing
from tools_service.base.errors import ConfigurationError

_SHOWN = 10


class SliceError(ConfigurationError):
    """Slices of different runs, one twice, or one that is missing."""


def expand(given: Sequence[Path]) -> tuple[Path, ...]:
    """The folders named, each glob replaced by the folders it matches. SliceError if it matches none."""
    folders: list[Path] = []
    for path in given:
        if path.exists() or not any(sign in str(path) for sign in "*?["):
            folders.append(path)
            continue
        found = sorted(folder for folder in map(Path, glob(str(path), recursive=True)) if folder.is_dir())
        if not found:
            raise SliceError(f"annotations {path}: no folder matches")
        folders += found
    return tuple(dict.fromkeys(folders))


def require_together(sources: Mapping[Path, AnnotationManifest], missing: bool = False) -> None:
    """SliceError unless the slices of each corpus have one recipe and are there once, and all of them.

    `missing` slices are allowed if so said.
    """
    corpora: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, manifest in sources.items():
        if manifest.recipe.corpus.slice is not None:
            corpora[manifest.corpus.sliced_from or ""].append(folder)
    for folders in corpora.values():
        _same_recipe(folders, sources)
        _each_once(folders, sources)
        if not missing:
            _complete(folders, sources, others=len(corpora) - 1)


def _same_recipe(folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest]) -> None:
    first = sources[folders[0]].recipe
    for folder in folders[1:]:
        recipe = sources[folder].recipe
        if first.corpus.part[1] != recipe.corpus.part[1]:
            raise SliceError(
                f"annotations: {folders[0]} is slice {first.corpus.slice}, {folder} {recipe.corpus.slice} of "
                "the same files; merge slices of one number"
            )
        alike = recipe.corpus.model_copy(update={"slice": first.corpus.slice})
        if fields := differing(first, recipe.model_copy(update={"corpus": alike})):
            raise SliceError(
                f"annotations: {folders[0]} and {folder} are slices of different recipes: {'; '.join(fields)}"
            )


def _each_once(folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest]) -> None:
    seen: dict[int, Path] = {}
    for folder in folders:
        corpus = sources[folder].recipe.corpus
        other = seen.setdefault(corpus.part[0], folder)
        if other != folder:
            raise SliceError(
                f"annotations: {other} and {folder} are both slice {corpus.slice}; name one of them"
            )


def _complete(folders: Sequence[Path], sources: Mapping[Path, AnnotationManifest], others: int) -> None:
    found = {sources[folder].recipe.corpus.part for folder in folders}
    of = next(iter(found))[1]
    absent = [f"{index}/{of}" for index in range(of) if (index, of) not in found]
    if not absent:
        return
    shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
    shown += "; other folders are slices of another list of files" if others else ""
    raise SliceError(
        f"annotations: of the corpus of {folders[0]} {len(absent)} of {of} slices are missing: {shown}. "
        "Annotate them, or merge without them with --missing-slices"
    )
