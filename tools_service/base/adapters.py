"""Folders of PEFT that hold a LoRA adapter: what adapter_config.json says, and where the base model is.

In: the value of a configuration field. Out: the adapter; None for any other model. An adapter is data of a
stranger: only plain LoRA on linear layers is read. A field that would train, load or import anything else
is refused by its name, and a base of other weights than it was trained on by the name of the file.
adapter_weights.py adds an adapter to its base. Imports neither torch nor peft.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from tools_service.base.errors import ConfigurationError
from tools_service.base.fingerprint import FileState
from tools_service.base.model_folder import ADAPTER_CONFIG, check_model_folder, json_object, may_be_hub_name
from tools_service.base.weights import (
    ADAPTER_WEIGHTS,
    WeightsError,
    file_states,
    require_unchanged,
    weight_files,
)

_BASE_FILES = "base_model_files"  # key in the metadata of the weights' file
_STATES = TypeAdapter(list[FileState])
# What the reader uses, and what says nothing about the result: names of classes, where layers are (the
# tensors' names say it), settings of the training.
_USED = ("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora")
_WITHOUT_EFFECT = (
    "auto_mapping",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "target_modules",
    "task_type",
)
_OFF: tuple[Any, ...] = (None, False, "", "none", [], {})
# These start from other numbers in the base or in the adapter, and leave the base as it is.
_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with a LoRA adapter. W of a layer becomes W + scale * B A."""

    folder: Path
    base: str  # folder or hub name
    revision: str | None  # of the base on the hub
    rank: int
    scale: float


def read_adapter(
    path: str, field: str, error: type[ConfigurationError] = ConfigurationError
) -> Adapter | None:
    """The adapter in folder `path`; None if `path` is no folder with an adapter.

    Raises `error`, which names `field`, for an adapter that is not plain LoRA, or whose base is missing.
    """
    folder = Path(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    check_model_folder(path, field, "config", error)
    try:
        return _parsed(folder, json_object(folder / ADAPTER_CONFIG))
    except (OSError, ValueError) as problem:
        raise error(f"{field} {path!r}: cannot load it: {problem}") from problem


def base_field(path: str, field: str) -> str:
    """How messages name the base model of the adapter in `path`."""
    return f"{field} {path!r}: base_model_name_or_path in its {ADAPTER_CONFIG}"


def model_inputs(path: str, field: str = "model.path") -> list[str]:
    """Folders and hub names that a model is read from: `path`, and the base of an adapter.

    Raises ConfigurationError as `read_adapter` does.
    """
    adapter = read_adapter(path, field)
    return [path, adapter.base] if adapter else [path]


def base_metadata(base: str) -> dict[str, str]:
    """Metadata for an adapter's file of weights, so that `require_base` knows the base in folder `base`."""
    if not Path(base).is_dir():
        return {}
    states = file_states(Path(base), [file.name for file in weight_files(Path(base))])
    return {_BASE_FILES: _STATES.dump_json(states).decode()}


def require_base(adapter: Adapter) -> None:
    """Raise WeightsError if the base's weights are not those that the adapter's file names."""
    try:
        with safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="np") as opened:
            recorded = (opened.metadata() or {}).get(_BASE_FILES)
        states = _STATES.validate_json(recorded) if recorded else []
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{ADAPTER_WEIGHTS} is cut off or damaged: {error}") from error
    if any(Path(state.name).name != state.name for state in states):
        raise WeightsError(f"{ADAPTER_WEIGHTS} names files of its base outside of a folder")
    if not Path(adapter.base).is_dir():
        return
    try:
        require_unchanged(Path(adapter.base), states)
    except WeightsError as error:
        raise WeightsError(
            f"it was trained on another base model than {adapter.base} ({error}); write the folder of its "
            f"own base as base_model_name_or_path in {ADAPTER_CONFIG}"
        ) from error


def _parsed(folder: Path, content: dict[str, Any] | str) -> Adapter:
    """Raises ValueError with what is wrong, in half a sentence."""
    if isinstance(content, str):
        raise ValueError(content)
    if content.get("peft_type") != "LORA":
        raise ValueError(f"peft_type = {_shown(content.get('peft_type'))} is not supported, only LORA is")
    for name, value in content.items():
        if name not in (*_USED, *_WITHOUT_EFFECT) and value not in _OFF:
            raise ValueError(f"{ADAPTER_CONFIG}: {name[:80]} = {_shown(value)} is not supported; {_INSTEAD}")
    if content.get("init_lora_weights") not in _INITIALIZATIONS:
        start = _shown(content["init_lora_weights"])
        raise ValueError(f"{ADAPTER_CONFIG}: init_lora_weights = {start} changes the base model; {_INSTEAD}")
    rank, alpha = _number(content, "r"), _number(content, "lora_alpha")
    if rank != int(rank):
        raise ValueError(f"{ADAPTER_CONFIG}: r = {rank} is not a whole number")
    revision = content.get("revision")
    if not isinstance(revision, str | None):
        raise ValueError(f"{ADAPTER_CONFIG}: revision = {_shown(revision)} is no name of a revision")
    scale = alpha / (math.sqrt(rank) if content.get("use_rslora") else rank)
    return Adapter(folder, _base(folder, content.get("base_model_name_or_path")), revision, int(rank), scale)


_INSTEAD = "merge the adapter into its base (merge_and_unload of PEFT) and name the merged model"


def _base(folder: Path, named: object) -> str:
    """Where the base is. A relative path counts from the adapter's folder, else from the working folder."""
    if not isinstance(named, str) or not named:
        raise ValueError(f"{ADAPTER_CONFIG} has no base_model_name_or_path; write the base's folder there")
    beside = folder / named
    base = str(beside.resolve()) if beside.is_dir() and not Path(named).is_absolute() else named
    if (Path(base) / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"base_model_name_or_path = {_shown(named)} in {ADAPTER_CONFIG} is an adapter, too; merge that "
            "one first (toolformer merge-lora)"
        )
    if not Path(base).is_dir() and not may_be_hub_name(base):
        raise ValueError(
            f"it is an adapter, and its base model is missing: there is no folder {_shown(named)}; write the "
            f"folder or hub name of the base as base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        )
    return base


def _number(content: dict[str, Any], name: str) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{ADAPTER_CONFIG}: {name} = {_shown(value)} is not a number above 0")
    return float(value)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]} …"
