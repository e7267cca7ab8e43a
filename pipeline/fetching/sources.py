"""Which files of a checkpoint are taken, from the hub or a folder, and how large they are.

In: names and sizes of all files. Out: `Files`: small files (configuration, tokenizer), and weights, in
safetensors if there are any, else pickled. Code, other frameworks' weights and notes are left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.fetching.errors import FetchError
from tools_service.base.model_folder import json_object
from tools_service.base.weights import INDEX, WEIGHTS

PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_SMALL = re.compile(
    r"((generation_|tokenizer_)?config\.json|tokenizer\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)|(tokenizer|spiece|sentencepiece(\.bpe)?)\.model)"
)
_MAX_SMALL = 256 * 2**20  # bytes; the largest tokenizers have some 30 MB
_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Files:
    """The files to take, each with its bytes. `index` is one of `small`."""

    small: dict[str, int]
    weights: dict[str, int]
    pickled: bool
    index: str | None

    @property
    def bytes(self) -> int:
        """Bytes of all files; the staged folder has no more."""
        return sum(self.small.values()) + sum(self.weights.values())

    @property
    def peak_bytes(self) -> int:
        """Bytes on the disk while the model is staged: pickled weights lie beside the converted ones."""
        return self.bytes + (sum(self.weights.values()) if self.pickled else 0)


def index_of(sizes: Mapping[str, int]) -> str | None:
    """The index that says which files hold the weights, where these are in several."""
    if WEIGHTS in sizes:
        return None
    if INDEX in sizes:
        return INDEX
    return PICKLED_INDEX if PICKLED_WEIGHTS not in sizes and PICKLED_INDEX in sizes else None


def files_of(name: str, sizes: Mapping[str, int], index: Path | None) -> Files:
    """The files to take of a checkpoint; `index` is the file that `index_of` named. Raises FetchError."""
    if _CONFIG not in sizes:
        raise FetchError(f"{name}: it has no {_CONFIG}: it is no checkpoint of transformers")
    small = {file: size for file, size in sizes.items() if _SMALL.fullmatch(file)}
    if index is not None:
        small[index.name] = sizes[index.name]
        weights = sorted(set(weight_map(name, index).values()))
    else:
        weights = [file for file in (WEIGHTS, PICKLED_WEIGHTS) if file in sizes][:1]
    if too_large := [file for file, size in small.items() if size > _MAX_SMALL]:
        raise FetchError(
            f"{name}: {too_large[0]} has {small[too_large[0]]:,} bytes, which no such file needs"
        )
    if not weights:
        others = [file for file in sizes if file.endswith((".h5", ".msgpack", ".gguf", ".bin", ".pt", ".ot"))]
        found = f"only {', '.join(sorted(others)[:3])}" if others else "none at all"
        raise FetchError(f"{name}: it has no weights in {WEIGHTS} or {PICKLED_WEIGHTS}, {found}")
    if missing := [file for file in weights if file not in sizes]:
        raise FetchError(f"{name}: {missing[0]} is missing, which {index.name if index else ''} names")
    return Files(
        small,
        {file: sizes[file] for file in weights},
        weights[0].endswith(".bin"),
        index.name if index else None,
    )


def weight_map(name: str, index: Path) -> dict[str, str]:
    """Name of the file of each tensor, by an index. Raises FetchError if it is none, or names odd files."""
    content = json_object(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise FetchError(f"{name}: {index.name} is not an index of weights; take the checkpoint anew")
    ending = ".bin" if index.name == PICKLED_INDEX else ".safetensors"
    for file in names.values():
        if not isinstance(file, str) or PurePosixPath(file).name != file or not file.endswith(ending):
            raise FetchError(
                f"{name}: {index.name} names {str(file)[:80]!r}, which is no file of its weights"
            )
    return {str(tensor): file for tensor, file in names.items()}
