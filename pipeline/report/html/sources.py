"""The report on a folder: which outputs it shows, and what stands before them in the chain.

In: a path (run_parts.py says what it stands for). Out: a `Report`. What cannot be read becomes a sentence in
it, and the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pipeline.augmentation.merge import MergeManifest
from pipeline.base.config import MergeConfig
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.report.html.annotation_section import annotation_section
from pipeline.report.html.augmented_section import augmented_section, read_merge_manifest
from pipeline.report.html.data import Report
from pipeline.report.html.evaluation_section import evaluation_section
from pipeline.report.html.training_section import training_section
from pipeline.report.run_parts import RunParts, parts_of
from pipeline.storage.kinds import ANNOTATION, AUGMENTED
from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.row_files import count_in_footers
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import now
from tools_service.base.version import __version__

T = TypeVar("T")
_UNREADABLE = (ToolformerError, OSError, ValueError, KeyError, pa.ArrowException)


def collect(folder: Path) -> Report:
    """The report on `folder`, or on the file of an evaluation.

    Raises ConfigurationError if nothing of it can be shown.
    """
    return report_of(parts_of(folder), folder)


def report_of(parts: RunParts, folder: Path) -> Report:
    """The report on these outputs. Of annotations, C* and evaluations it has one each, and says which."""
    problems = list(parts.problems)
    reader = _Reader(problems)
    augmented = _newest(parts.augmented or _data_of(parts.models), problems)
    merged = reader.read(read_merge_manifest, augmented)
    annotation = _largest(_annotations(parts, merged), problems)
    evaluation = reader.read(evaluation_section, _newest(parts.evaluations, problems))
    if evaluation is not None:
        problems += evaluation[1]
    report = Report(
        title=folder.resolve().name or str(folder),
        folder=str(folder),
        created=now(),
        version=__version__,
        annotation=reader.read(lambda path: annotation_section(path, _config_of(merged, path)), annotation),
        augmented=reader.read(augmented_section, augmented) if merged is not None else None,
        trainings=tuple(filter(None, [reader.read(training_section, path) for path in parts.models])),
        evaluation=evaluation[0] if evaluation is not None else None,
    )
    if not (report.annotation or report.augmented or report.trainings or report.evaluation):
        raise ConfigurationError(problems[0])
    return report.model_copy(update={"problems": tuple(dict.fromkeys(problems))})


class _Reader:
    """Reads parts; an error becomes a sentence in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def read(self, section: Callable[[Path], T], path: Path | None) -> T | None:
        if path is None:
            return None
        try:
            return section(path)
        except _UNREADABLE as error:
            text = brief(error)
            self._problems.append(text if str(path) in text else f"{path}: {text}")
            return None


def _data_of(models: Sequence[Path]) -> list[Path]:
    """The C* that the models were trained on, where it still is."""
    folders: dict[Path, None] = {}
    for path in models:
        try:
            data = RunFolder(path).identity().config.data
        except ConfigurationError:
            continue  # its section says so
        if AUGMENTED.is_marked(data):
            folders[data] = None
    return list(folders)


def _annotations(parts: RunParts, merged: MergeManifest | None) -> list[Path]:
    """The annotations to choose from: those that C* was merged from, where there are such."""
    if merged is None:
        return parts.annotations
    if not parts.annotations:
        return [source.folder for source in merged.sources if ANNOTATION.is_marked(source.folder)]
    return [path for path in parts.annotations if _is_source(merged, path)] or parts.annotations


def _config_of(merged: MergeManifest | None, annotation: Path) -> MergeConfig | None:
    """How the annotation was merged; None if it was not."""
    return merged.config if merged is not None and _is_source(merged, annotation) else None


def _is_source(merged: MergeManifest, annotation: Path) -> bool:
    """Whether C* was merged from the annotation. A copy, or another working folder, gives another path."""
    if annotation.resolve() in {source.folder.resolve() for source in merged.sources}:
        return True
    try:
        manifest = read_manifest(annotation)
    except ConfigurationError:
        return False
    state = manifest.corpus.digest, manifest.counts.texts if manifest.counts is not None else None
    return state in {(source.corpus, source.texts) for source in merged.sources}


def _largest(annotations: Sequence[Path], problems: list[str]) -> Path | None:
    """The annotation with the most texts, the first of equal ones."""
    if len(annotations) < 2:
        return next(iter(annotations), None)
    chosen = max(annotations, key=_texts)
    problems.append(
        f"There are {len(annotations)} annotations; this page shows {chosen}, the one with the most texts. "
        "Give `report` the folder of another one to see it."
    )
    return chosen


def _texts(annotation: Path) -> int:
    try:
        counts = read_manifest(annotation).counts
        return counts.texts if counts is not None else count_in_footers(annotation)
    except ConfigurationError:
        return -1


def _newest(outputs: Sequence[Path], problems: list[str]) -> Path | None:
    """Of several C* or evaluations the one that was written last."""
    if len(outputs) < 2:
        return next(iter(outputs), None)
    chosen = max(outputs, key=_written)
    others = ", ".join(str(path) for path in outputs if path != chosen)
    problems.append(f"This page shows {chosen}, which was written last, and not {others}.")
    return chosen


def _written(output: Path) -> float:
    try:
        return (output / MANIFEST if output.is_dir() else output).stat().st_mtime
    except OSError:
        return 0.0
