"""What a folder is: an annotation, C*, a fine-tuned model, an evaluation, or a whole run that holds such.

In: a path, also of a run that is going on. Out: the outputs it stands for, by their marks (storage/kinds.py).
Only manifests are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.kinds import ANNOTATION, AUGMENTED, EVALUATION, FINE_TUNED
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import read_json
from tools_service.base.report_file import REPORT

_EXPECTED = (
    "expected an annotation (annotate), C* (merge), a fine-tuned model (finetune), an evaluation "
    "(evaluate), or a folder with some of these (demo)"
)
_PARTS_OF_LABEL = re.compile(r"(.+)\.[\w-]+\.parts")


@dataclass(slots=True)
class RunParts:
    """The outputs that a path stands for, sorted by path, and sentences about what cannot be read."""

    annotations: list[Path] = field(default_factory=list)
    augmented: list[Path] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)  # files; one that is not there yet has chunks
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.annotations or self.augmented or self.models or self.evaluations)

    def add_folder(self, folder: Path) -> bool:
        """Add the folder if it is an output of annotate, merge or finetune."""
        kinds = ((ANNOTATION, self.annotations), (AUGMENTED, self.augmented), (FINE_TUNED, self.models))
        for kind, paths in kinds:
            if kind.is_marked(folder):
                paths.append(folder)
                return True
        return False

    def add_evaluation(self, file: Path) -> bool:
        """Add the file if it is an evaluation, or if evaluate has begun to answer its questions."""
        if file not in self.evaluations and (EVALUATION.is_marked(file) or any(chunk_folders(file))):
            self.evaluations.append(file)
        return file in self.evaluations


def parts_of(path: Path) -> RunParts:
    """What `path` stands for. ConfigurationError if that is nothing, or cannot be read."""
    parts = RunParts()
    try:
        if not path.is_dir():
            parts.add_evaluation(path)
        elif not parts.add_folder(path):
            _add_children(parts, path, levels=2)
        if not parts and not parts.problems:
            what = "nothing to show here" if path.exists() else "no such folder"
            raise ConfigurationError(f"{path}: {what}; {_EXPECTED}")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not parts:
        raise ConfigurationError(f"{path}: nothing to show. {parts.problems[0]}")
    return parts


def report_path(folder: Path) -> Path:
    """Where the report on `folder` stands: in it, or beside the file of an evaluation."""
    return folder / REPORT if folder.is_dir() else folder.with_suffix(".html")


def chunk_folders(file: Path) -> Iterator[Path]:
    """The folders with chunks of unfinished benchmarks of an evaluation, one for each label."""
    if file.suffix != ".json" or not file.parent.is_dir():
        return
    for path in sorted(file.parent.glob("*.parts")):
        match = _PARTS_OF_LABEL.fullmatch(path.name)
        if match and match[1] == file.stem and path.is_dir():
            yield path


def _add_children(parts: RunParts, folder: Path, levels: int) -> None:
    """The outputs in `folder`, and in its folders: slices of one corpus often have one of their own."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            if not path.is_dir():
                if path.suffix == ".json" and not parts.add_evaluation(path) and _is_result(path):
                    read_json(path)  # raises an error that is not passed over in silence
            elif chunks := _PARTS_OF_LABEL.fullmatch(path.name):
                parts.add_evaluation(folder / f"{chunks[1]}.json")
            elif parts.add_folder(path):
                continue
            elif (path / MANIFEST).exists():  # of another command
                read_json(path / MANIFEST)
            elif levels > 1:
                _add_children(parts, path, levels - 1)
        except (OSError, ValueError) as error:
            parts.problems.append(f"{path}: cannot be read and is left out: {brief(error)}")
    parts.evaluations.sort()


def _is_result(file: Path) -> bool:
    """Whether a file must be one of ours by its name or by the predictions beside it."""
    return file.name in (MANIFEST, "evaluation.json") or any(file.parent.glob(f"{file.stem}.*.parquet"))
