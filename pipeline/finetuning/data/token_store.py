"""The tokens of C*, made once and kept in files that all workers of a node share.

In: the files of C* and a tokenizer. Out: a folder, named by the digest of all that decides its content:

    tokens.bin    int32, every example after another, in the order of the files of C*
    results.bin   one byte a token: 1 if a tool has written it
    index.npy     a record per example, sorted by text_id
    store.json    sizes and digests of the other three

It appears only when it is complete. Workers map the files into memory, so they share one copy. A store that
was damaged is written again; one of other data has another name.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import TextIndex, tools_of
from pipeline.finetuning.data.examples import ExampleEncoder, Examples, Split, choose_uses, split
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import OutputError, atomic_write_json, read_json, writing
from tools_service.base.fingerprint import content_digest, fingerprint
from tools_service.contract.declarations import with_installed

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the same C* gives other files
_STORE, _INDEX = "store.json", "index.npy"
_FLAT = {"tokens.bin": np.dtype(np.int32), "results.bin": np.dtype(np.bool_)}
_RECORD = np.dtype(
    [
        ("text_id", np.int64),
        ("plain", np.int64),
        ("start", np.int64),
        ("length", np.int32),
        ("results", np.int32),
        ("cut", np.bool_),
    ]
)


class TokenStoreError(ConfigurationError):
    """A store that a worker cannot open: it was changed or removed during the run."""


@dataclass(frozen=True, slots=True)
class TokenStore:
    """A complete store."""

    folder: Path

    def split(self, config: FinetuneConfig) -> Split:
        """The training and held-out examples, over the files. Raises as `split` and `choose_uses` do."""
        try:
            index = np.load(self.folder / _INDEX, mmap_mode="r")
            tokens, is_result = (self._flat(name) for name in _FLAT)
        except (OSError, ValueError) as error:
            raise TokenStoreError(f"{self.folder}: cannot be read: {brief(error)}; start again") from error
        examples = Examples(
            text_ids=index["text_id"],
            tokens=tokens,
            is_result=is_result,
            starts=index["start"],
            lengths=index["length"].astype(np.int64),
            results=index["results"].astype(np.int64),
            cut=index["cut"],
        )
        return split(examples, choose_uses(np.array(index["plain"]), config), config)

    def _flat(self, name: str) -> NDArray[Any]:
        return np.memmap(self.folder / name, dtype=_FLAT[name], mode="r")

    def problem(self) -> str | None:
        """Why this is no complete store, in words; None if all its content is as it was written."""
        try:
            files = read_json(self.folder / _STORE)["files"]
            for name in (*_FLAT, _INDEX):
                size, digest = files[name]["size"], files[name]["digest"]
                path = self.folder / name
                if path.stat().st_size != size or content_digest(path, "blake2b") != digest:
                    return f"{name} is not as it was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return brief(error)
        return None


def store_of(config: FinetuneConfig, tokenizer: Any, data: str) -> TokenStore:
    """Where the tokens of a run are; `data` is the digest of C*. Nothing is read or written."""
    folder = config.tokens or config.output / "checkpoints" / "tokens"
    return TokenStore(folder / _digest(config, tokenizer, data))


def _digest(config: FinetuneConfig, tokenizer: Any, data: str) -> str:
    """The digest of all that decides the content of a store."""
    encoder = ExampleEncoder(tokenizer, config.sequence_length, tools_of(config.data))
    definition = tokenizer.backend_tokenizer.to_str()
    special = [encoder.bos.tolist(), encoder.eos.tolist()]
    tools = sorted(with_installed(encoder.tools))
    parts = [_FORMAT, data, config.column, config.sequence_length, definition, special, tools]
    return fingerprint([*parts, tokenizers.__version__])


def write(folder: Path, batches: Iterable[Examples], index: TextIndex) -> None:
    """Write a store into an empty folder. `index` has the texts of all batches."""
    records, position = [], 0
    hashes = {name: hashlib.blake2b() for name in _FLAT}
    with writing(folder), ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _FLAT}
        for batch in batches:
            for name, values in zip(_FLAT, (batch.tokens, batch.is_result), strict=True):
                content = np.ascontiguousarray(values, dtype=_FLAT[name]).tobytes()
                files[name].write(content)
                hashes[name].update(content)
            records.append(_records(batch, position))
            position += len(batch.tokens)
    ordered = _with_plain(np.concatenate(records), index, folder)
    with writing(folder):
        np.save(folder / _INDEX, ordered)
        digests = {name: digest.hexdigest() for name, digest in hashes.items()}
        digests[_INDEX] = content_digest(folder / _INDEX, "blake2b")
        described = {
            name: {"size": (folder / name).stat().st_size, "digest": digest}
            for name, digest in digests.items()
        }
    description = {"format": _FORMAT, "examples": len(ordered), "tokens": position, "files": described}
    atomic_write_json(folder / _STORE, description)


def _records(batch: Examples, position: int) -> NDArray[Any]:
    records = np.zeros(len(batch), dtype=_RECORD)
    records["text_id"], records["start"] = batch.text_ids, batch.starts + position
    records["length"], records["results"], records["cut"] = batch.lengths, batch.results, batch.cut
    return records


def _with_plain(records: NDArray[Any], index: TextIndex, folder: Path) -> NDArray[Any]:
    """The records sorted by id, each with the number of its text without calls."""
    ordered = records[np.argsort(records["text_id"], kind="stable")]
    if not np.array_equal(ordered["text_id"], index.text_ids):
        raise OutputError(f"{folder}: C* changed while it was tokenised; give the command again")
    ordered["plain"] = index.plain
    return ordered
