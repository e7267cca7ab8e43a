"""FAISS behind dense retrieval: opens an index of vectors by memory map and searches it.

Three kinds (config.VectorsConfig): `flat` is exact and compares all vectors; `hnsw` walks a graph,
fast and large; `ivfpq` keeps a short code per passage, in cells, and ranks its candidates again by
their vectors. Similarity is the inner product. indexing/vectors.py writes the files:

    index.faiss   FAISS's own format
    exact.f16     float16 [passages, D]: vectors for ranking ivfpq's candidates again; empty otherwise
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from tools_service.base.errors import ConfigurationError
from tools_service.config import VectorsConfig
from tools_service.retrieval.passages import Hit

INDEX_FILE, EXACT_FILE = "index.faiss", "exact.f16"

Vectors = npt.NDArray[np.float32]  # [passages or queries, D]


class VectorsError(ConfigurationError):
    """Vectors cannot be built or opened as the configuration says."""


class VectorIndex:
    """An index that VectorWriter wrote. Threads may search at once."""

    def __init__(self, config: VectorsConfig, folder: Path) -> None:
        self._refine = config.refine
        self._on_gpu = config.gpu == "auto" and config.kind != "hnsw" and faiss.get_num_gpus() > 0
        self._gpu_lock = threading.Lock()
        self._index = _open_index(config, folder / INDEX_FILE, on_gpu=self._on_gpu)
        self._exact: npt.NDArray[np.float16] | None = None
        if (folder / EXACT_FILE).stat().st_size:
            exact = np.memmap(folder / EXACT_FILE, dtype=np.float16, mode="r")
            self._exact = exact.reshape(-1, self._index.d)

    def search(self, vectors: Vectors, k: int) -> list[list[Hit]]:
        """For each of `vectors`, return the `k` with the largest inner product, best first."""
        candidates = k * max(1, self._refine) if self._exact is not None else k
        if self._on_gpu:  # on a GPU, one thread at a time may use FAISS
            with self._gpu_lock:
                scores, numbers = self._index.search(vectors, candidates)
        else:
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
    if on_gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.read_index(str(path)))
    else:
        mapped = faiss.IO_FLAG_MMAP if config.kind == "ivfpq" else faiss.IO_FLAG_MMAP_IFC
        index = faiss.read_index(str(path), mapped)
    if config.kind == "ivfpq":
        index.nprobe = min(config.probes, index.nlist)
    if config.kind == "hnsw":
        index.hnsw.efSearch = config.search_effort
    return index
