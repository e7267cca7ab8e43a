"""The files of a checkpoint folder: which hold its weights, and whether they are still whole.

In: a folder and, where its manifest.json lists files, their states. Out: the states for such a list,
a digest of the model, or what is wrong in half a sentence. Nothing is loaded into a model, and no
transformers are imported; checkpoints.py does both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from tools_service.base.fingerprint import FileState, content_digest, fingerprint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"

# What decides how a model and its tokenizer behave; code, logs and notes do not.
_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")
_NOT_THE_MODEL = (MANIFEST, "steps.json")
# Types of tensors, as files of safetensors name them.
_FLOATING = ("F64", "F32", "F16", "BF16")
_STATES = TypeAdapter(list[FileState])


class WeightsError(ValueError):
    """Files of weights are missing, cut off or damaged. The message names the file."""


def weight_files(folder: Path) -> list[Path]:
    """The files that weights are read from, of a model or of an adapter; none if there are no safetensors.

    Raises WeightsError for an index that cannot be read or names files that are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return [folder / ADAPTER_WEIGHTS] if (folder / ADAPTER_WEIGHTS).is_file() else []
    files = sorted({folder / name for name in _weight_map(folder / INDEX).values()})
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(f"{missing[0]} is missing, which {INDEX} names")
    return files


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and value of each tensor, one at a time. Raises WeightsError for a damaged file."""
    seen: set[str] = set()
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 — no mapping
                    seen.add(name)
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file.name} is cut off or damaged: {error}") from error
    indexed = set() if (folder / WEIGHTS).is_file() else _indexed(folder)
    if missing := sorted(indexed - seen):
        raise WeightsError(f"no tensor {missing[0]}, which {INDEX} names")


def require_headers(folder: Path) -> None:
    """Raise WeightsError unless there are weights and the header of each file fits its length."""
    files = weight_files(folder)
    if not files:
        raise WeightsError(f"{WEIGHTS} is missing")
    for file in files:
        try:
            with safe_open(file, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file.name} is cut off or damaged: {error}") from error


def weight_numbers(folder: Path) -> int:
    """How many numbers all tensors hold together; only headers are read."""
    total = 0
    for file in weight_files(folder):
        with safe_open(file, framework="np") as opened:
            total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return total


def require_floating(folder: Path, buffers: tuple[str, ...]) -> None:
    """Raise WeightsError if a matrix is stored in less than 16 bits: it would be read as it stands.

    Tensors whose names end with one of `buffers` may be stored in any type.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118
                stored = opened.get_slice(name)
                matrix = len(stored.get_shape()) > 1 and not name.endswith(buffers)
                if matrix and stored.get_dtype() not in _FLOATING:
                    raise WeightsError(
                        f"the tensor {name} is stored as {stored.get_dtype()}: quantized weights are not "
                        "supported; use the original checkpoint"
                    )


def model_files(folder: Path) -> list[Path]:
    """Files of weights, configuration and tokenizer directly in `folder`, sorted by name."""
    return [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in _MODEL_SUFFIXES and path.name not in _NOT_THE_MODEL and path.is_file()
    ]


def model_digest(folder: Path) -> str:
    """Digest of names and contents of the model's files. Runs store it: it must stay as it is."""
    return fingerprint([[path.name, content_digest(path)] for path in model_files(folder)])


def file_states(folder: Path, names: Iterable[str]) -> list[FileState]:
    """The states of these files of `folder`, with digests, for a manifest."""
    return [FileState.of(folder / name, contents=True) for name in sorted(names)]


def require_unchanged(folder: Path, states: Sequence[FileState]) -> None:
    """Raise WeightsError if a file of `states` is missing, or its weights are not the same.

    Other files may differ in content: people add chat templates and edit generation settings.
    """
    for state in states:
        path = folder / state.name
        if not path.is_file():
            raise WeightsError(f"{state.name} is missing")
        size = path.stat().st_size
        if not state.name.endswith((".safetensors", INDEX)):
            if not size:
                raise WeightsError(f"{state.name} is empty")
        elif size != state.size:
            raise WeightsError(f"{state.name} has {size:,} bytes, and {state.size:,} were written")
        elif not state.matches(path):
            raise WeightsError(f"{state.name} has other content than was written")


def listed_files(folder: Path) -> list[FileState]:
    """The files that a manifest.json in `folder` lists; none if it lists none or is no manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return _STATES.validate_python(manifest.get("files") or [])
    except (OSError, ValueError, AttributeError):
        return []


def _indexed(folder: Path) -> set[str]:
    """The tensors that the index names, if there is one."""
    return set(_weight_map(folder / INDEX)) if (folder / INDEX).is_file() else set()


def _weight_map(index: Path) -> dict[str, str]:
    """Name of the file of each tensor."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): Path(file).name for tensor, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index.name} is not an index of weights: {error}") from error
