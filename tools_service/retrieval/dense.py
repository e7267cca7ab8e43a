"""Dense retrieval: encodes queries and searches the vectors of an index with FAISS.

Three kinds of index (config.VectorsConfig): `flat` is exact and compares all vectors; `hnsw` walks
a graph, fast and large; `ivfpq` keeps a short code per passage, in cells, and ranks its candidates
again by their vectors. Similarity is the inner product. The folder `vectors` (indexing/vectors.py):

    index.faiss   FAISS's own format, opened by memory map
    exact.f16     float16 [passages, D]: vectors to rank ivfpq's candidates again; else empty
    probe.npy     the vector of a fixed text, which shows whether the encoder built the index
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from tools_service.base.errors import ConfigurationError, brief
from tools_service.config import VectorsConfig, WikiSearchConfig
from tools_service.retrieval.encoder import Encoder, Vectors
from tools_service.retrieval.index import MANIFEST, damaged, load_array
from tools_service.retrieval.passages import Hit, Passage

VECTORS_FOLDER = "vectors"
INDEX_FILE, EXACT_FILE, PROBE_FILE = "index.faiss", "exact.f16", "probe.npy"
PROBE = Passage("Probe", "What the encoder makes of these words identifies it.")

# Relative distance of two probes. Another dtype or device moves a vector by a hundredth at most,
# another encoder by about its length.
_TOLERANCE = 0.05


class VectorsError(ConfigurationError):
    """Vectors cannot be built or opened as the configuration says."""


def encoder_settings(config: WikiSearchConfig) -> dict[str, Any]:
    """Return the encoder's settings that change the passages' vectors."""
    return config.encoder.model_dump(include={"pooling", "passage_prefix", "normalize", "max_tokens"})


class DenseIndex:
    """The vectors of an index, and the encoder for its queries. Threads may search at once."""

    def __init__(self, config: WikiSearchConfig, manifest: dict[str, Any]) -> None:
        """Raise VectorsError if the index has no vectors, or vectors of another kind or encoder."""
        built = manifest["settings"]
        _require_same_settings(config, built)
        folder = config.folder / VECTORS_FOLDER
        self._encoder = Encoder(config.encoder)
        stored = load_array(folder / PROBE_FILE, "float32", dimensions=2)
        probe = self._encoder.encode_passages([PROBE])
        tolerance = _TOLERANCE * np.linalg.norm(stored)
        if stored.shape != probe.shape or np.linalg.norm(stored - probe) > tolerance:
            raise VectorsError(
                f"tools.wikisearch.encoder.model: {config.encoder.model!r} is not the encoder that "
                f"{config.index} was built with ({built['encoder']['model']!r}); name that one, or build the "
                "index again"
            )
        self._vectors = VectorIndex(config.vectors, folder)
        self._vectors.require_size(manifest["passages"], probe.shape[1])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query, return the `k` passages with the largest inner product, best first."""
        return self._vectors.search(self._encoder.encode_queries(queries), k) if queries else []


def _require_same_settings(config: WikiSearchConfig, built: dict[str, Any]) -> None:
    if "vectors" not in built:
        raise VectorsError(
            f"tools.wikisearch.retriever = {config.retriever}: the index {config.index} has no vectors; "
            f"build it with python -m tools_service index --retriever {config.retriever}"
        )
    required = {"encoder": encoder_settings(config), "vectors": {"kind": config.vectors.kind}}
    for section, fields in required.items():
        for name, value in fields.items():
            stored = built.get(section)
            if not isinstance(stored, dict) or name not in stored:
                raise damaged(config.folder / MANIFEST, f"settings.{section}.{name} is missing")
            if stored[name] != value:
                raise VectorsError(
                    f"tools.wikisearch.{section}.{name} = {value!r}: the index {config.index} was built with "
                    f"{stored[name]!r}; set that, or build it again"
                )


class VectorIndex:
    """An index that VectorWriter wrote. Threads may search at once."""

    def __init__(self, config: VectorsConfig, folder: Path) -> None:
        self._folder = folder
        self._refine = config.refine
        self._on_gpu = config.gpu == "auto" and config.kind != "hnsw" and faiss.get_num_gpus() > 0
        self._gpu_lock = threading.Lock()
        self._index = _open_index(config, folder / INDEX_FILE, on_gpu=self._on_gpu)
        self._exact: npt.NDArray[np.float16] | None = None
        try:
            if (folder / EXACT_FILE).stat().st_size:
                exact = np.memmap(folder / EXACT_FILE, dtype=np.float16, mode="r")
                self._exact = exact.reshape(-1, self._index.d)
        except (OSError, ValueError) as error:
            raise damaged(folder / EXACT_FILE, brief(error)) from error

    def require_size(self, passages: int, dimension: int) -> None:
        """Raise IndexFolderError unless there is a vector of length `dimension` for each passage."""
        shape = (self._index.ntotal, self._index.d)
        if shape != (passages, dimension):
            raise damaged(self._folder / INDEX_FILE, f"{shape}, not {(passages, dimension)} vectors")
        if self._exact is not None and len(self._exact) != passages:
            raise damaged(self._folder / EXACT_FILE, f"{len(self._exact)}, not {passages} vectors")

    def search(self, vectors: Vectors, k: int) -> list[list[Hit]]:
        """For each of `vectors`, return the `k` with the largest inner product, best first."""
        candidates = k * max(1, self._refine) if self._exact is not None else k
        # On a GPU, one thread at a time may use FAISS.
        with self._gpu_lock if self._on_gpu else nullcontext():
            scores, numbers = self._index.search(vectors, candidates)
        ranked = []
        for vector, row, row_scores in zip(vectors, numbers, scores, strict=True):
            valid = row >= 0  # FAISS fills up with -1 if there are fewer than asked for
            ranked.append(self._rank(vector, row[valid], row_scores[valid], k))
        return ranked

    def _rank(self, vector: Vectors, numbers: npt.NDArray[np.int64], scores: Vectors, k: int) -> list[Hit]:
        if self._exact is not None and self._refine:
            scores = self._exact[numbers].astype(np.float32) @ vector
        order = np.lexsort((numbers, -scores))[:k]
        return [Hit(int(numbers[n]), float(scores[n])) for n in order]


def _open_index(config: VectorsConfig, path: Path, *, on_gpu: bool) -> Any:
    index: Any
    try:
        if on_gpu:
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.read_index(str(path)))
        else:
            mapped = faiss.IO_FLAG_MMAP if config.kind == "ivfpq" else faiss.IO_FLAG_MMAP_IFC
            index = faiss.read_index(str(path), mapped)
        if config.kind == "ivfpq":
            index.nprobe = min(config.probes, index.nlist)
        if config.kind == "hnsw":
            index.hnsw.efSearch = config.search_effort
    except (RuntimeError, OSError, AttributeError) as error:  # FAISS raises RuntimeError for a damaged file
        raise damaged(path, brief(error)) from error
    return index
