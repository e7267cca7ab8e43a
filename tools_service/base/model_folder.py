"""What is in a folder that should hold a Hugging Face checkpoint, before anything is loaded from it.

In: the value of a configuration field, and what is to be loaded. Out: nothing, or an error of one
sentence: what the folder holds instead, and what to do. A hub name is left to transformers. Only
small files of JSON and the first bytes of weights are read; neither torch nor transformers is
imported.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from tools_service.base.errors import ConfigurationError
from tools_service.base.weights import ADAPTER_WEIGHTS, INDEX, WEIGHTS

ADAPTER_CONFIG = "adapter_config.json"
PICKLED = "pytorch_model*.bin"

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
Part = Literal["tokenizer", "config", "weights"]

_LFS_POINTER = b"version https://git-lfs"
_OTHER_WEIGHTS = (
    ("*.bin", "pickled weights (.bin)"),
    ("*.pt*", "pickled weights"),
    ("*.gguf", "GGUF files"),
    ("*.h5", "weights of TensorFlow"),
    ("*.msgpack", "weights of Flax"),
)
# Each tokenizer of transformers has one of these files.
_TOKENIZER_FILES = ("tokenizer*.json", "vocab*", "*.model", "*.tiktoken", "tekken.json", "*.bpe", "spiece*")
_CONVERT = "save the model again with save_pretrained, which writes safetensors"
TO_SAFETENSORS = "`toolformer fetch --model {}` makes a copy with safetensors"


def check_model_folder(path: str, field: str, part: Part, error: type[ConfigurationError]) -> None:
    """Raise `error`, which names `field`, if `part` of a checkpoint cannot be loaded from `path`."""
    if may_be_hub_name(path):
        return
    problem = _problem(Path(path), part)
    if problem:
        raise error(f"{field} {path!r}: cannot load it: {problem}")


def may_be_hub_name(path: str) -> bool:
    """Whether `path` is nothing on this machine and has the form of a hub name.

    That is NAME, or OWNER/NAME where no folder is called OWNER: else it is a folder that is missing.
    """
    owner, slash, _ = path.partition("/")
    is_path = Path(path).exists() or bool(slash and Path(owner).is_dir())
    return not is_path and _HUB_NAME.fullmatch(path) is not None


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds a file of a tokenizer."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES)


def _problem(folder: Path, part: Part) -> str | None:
    """What keeps `part` from being loaded, and what to do; None if nothing is seen."""
    try:
        if not folder.exists():
            return "there is no such folder; name one with a model, or a model of the hub (owner/name)"
        if not folder.is_dir():
            kind = "a GGUF file" if folder.suffix == ".gguf" else "a file"
            return f"it is {kind}; name the folder that holds config.json, safetensors and tokenizer.json"
        if not any(folder.iterdir()):
            return "the folder is empty"
        problem = _config_problem(folder)
        if problem is None and part == "weights":
            problem = _weights_problem(folder)
        if problem is None and part == "tokenizer":
            problem = _tokenizer_problem(folder)
    except OSError as error:
        return f"{error.strerror or error}: {error.filename or folder}"
    return problem


def _config_problem(folder: Path) -> str | None:
    if (folder / ADAPTER_CONFIG).exists():
        return _adapter_problem(folder)
    if not (folder / "config.json").exists():
        if any(folder.glob("*.gguf")):
            return f"it holds GGUF files, not a checkpoint of transformers; {_CONVERT}"
        return "it has no config.json; name the folder of a checkpoint of transformers"
    config = json_object(folder / "config.json")
    if isinstance(config, str):
        return config
    if not isinstance(config.get("model_type"), str):
        return "config.json has no model_type; take the whole checkpoint from its source"
    return None


def _adapter_problem(folder: Path) -> str | None:
    """What keeps an adapter from being loaded; adapters.py looks into its adapter_config.json."""
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        return (
            f"it holds an adapter ({ADAPTER_CONFIG}) beside the weights of a model; merge the adapter "
            "into the model, or move it to another folder"
        )
    if not (folder / ADAPTER_WEIGHTS).exists():
        kind = next((kind for pattern, kind in _OTHER_WEIGHTS if any(folder.glob(pattern))), "no weights")
        return f"it is an adapter with {kind} and no {ADAPTER_WEIGHTS}; {_CONVERT}"
    return None


def _tokenizer_problem(folder: Path) -> str | None:
    if not has_tokenizer(folder):
        return "it has no tokenizer; copy tokenizer.json and tokenizer_config.json of the model there"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            content = json_object(folder / name)
            if isinstance(content, str):
                return content
    return None


def _weights_problem(folder: Path) -> str | None:
    """What stands where the weights should be; weights.py looks into files of safetensors."""
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return _lfs(file)
    if (folder / WEIGHTS).exists() or (folder / ADAPTER_CONFIG).exists():
        return None
    if (folder / INDEX).exists():
        content = json_object(folder / INDEX)
        return content if isinstance(content, str) else None
    if weights:
        return f"it has {weights[0].name}, but neither {WEIGHTS} nor {INDEX}; download it again"
    for pattern, kind in _OTHER_WEIGHTS:
        if any(folder.glob(pattern)):
            advice = TO_SAFETENSORS.format(folder) if any(folder.glob(PICKLED)) else _CONVERT
            return f"it has {kind} and no {WEIGHTS}; {advice}"
    return f"it has no weights ({WEIGHTS}); download the whole checkpoint"


def json_object(file: Path) -> dict[str, Any] | str:
    """The object in a file of JSON, or what is wrong with the file."""
    content = file.read_bytes()
    if content.startswith(_LFS_POINTER):
        return _lfs(file)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"{file.name} is not JSON ({error}); download it again"
    if not isinstance(value, dict):
        return f"{file.name} holds no JSON object; download it again"
    return value


def _lfs(file: Path) -> str:
    return f"{file.name} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
