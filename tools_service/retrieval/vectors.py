"""FAISS behind dense retrieval: an index of vectors, built in batches, opened by memory map, exact or not.

Three kinds (config.VectorsConfig): `flat` is exact and looks at everything; `hnsw` walks a graph, fast and
large; `ivfpq` keeps a short code per passage, in cells, and ranks what it finds again by the vectors
themselves. Nearness is the inner product. Knows nothing of texts. In a folder it writes and opens

    index.faiss   FAISS's own format
    exact.f16     float16 [passages, D]: what ivfpq's candidates are ranked again by; empty for the others

Building flat or hnsw holds all vectors in memory, ivfpq only the codes.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from tools_service.base.errors import ConfigurationError
from tools_service.config import VectorsConfig
from tools_service.retrieval.passages import Hit

_TRAINING_PER_LIST = 64  # vectors that k-means sees for each cell; FAISS wants 39 at least
_CODEBOOK = 256  # entries of a product quantizer's codebook, and as many vectors are needed to learn it
_TRAINING_PER_CODE = 39

Vectors = npt.NDArray[np.float32]  # [passages or queries, D]


class VectorsError(ConfigurationError):
    """Vectors that cannot be built or opened as the configuration says."""


class VectorWriter:
    """Writes the index of `total` vectors of `dimension` that come in order: train, add as often as needed,
    close.
    """

    def __init__(self, config: VectorsConfig, folder: Path, dimension: int, total: int) -> None:
        """VectorsError if `config` does not suit so many vectors of that length."""
        self._index = _new_index(config, dimension, total)
        self._path = folder / "index.faiss"
        self._exact = (folder / "exact.f16").open("wb")
        self._keeps_exact = config.kind == "ivfpq" and config.refine > 0
        wanted = 0
        if not self._index.is_trained:
            wanted = max(self._index.nlist * _TRAINING_PER_LIST, _CODEBOOK * _TRAINING_PER_CODE)
        self.sample: list[int] = np.random.default_rng(0).permutation(total)[:wanted].tolist()
        """The vectors to train on, by number; none where nothing is learnt."""

    def train(self, vectors: Vectors) -> None:
        """Learn cells and codes from the vectors of the sample."""
        self._index.train(vectors)

    def add(self, vectors: Vectors) -> None:
        """The next vectors."""
        self._index.add(vectors)
        if self._keeps_exact:
            vectors.astype(np.float16).tofile(self._exact)

    def close(self) -> None:
        """Write what was added."""
        self._exact.close()
        faiss.write_index(self._index, str(self._path))


def _new_index(config: VectorsConfig, dimension: int, total: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if config.kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, config.neighbours, metric)
        index.hnsw.efConstruction = config.build_effort
        return index
    if dimension % config.code_bytes:
        raise VectorsError(
            f"tools.wikisearch.vectors.code_bytes = {config.code_bytes} does not divide the encoder's "
            f"{dimension} dimensions: choose a divisor"
        )
    if total < _CODEBOOK:
        raise VectorsError(
            f"tools.wikisearch.vectors.kind = ivfpq needs {_CODEBOOK} passages, there are {total}: use flat"
        )
    lists = config.lists or max(1, min(int(4 * math.sqrt(total)), total // _TRAINING_PER_LIST))
    cells = faiss.IndexIVFPQ(faiss.IndexFlatIP(dimension), dimension, lists, config.code_bytes, 8, metric)
    cells.pq.cp.min_points_per_centroid = 1  # a small index has few: no reason to warn of every codebook
    return cells


class VectorIndex:
    """An index that VectorWriter wrote. Any number of threads may search."""

    def __init__(self, config: VectorsConfig, folder: Path) -> None:
        self._refine = config.refine
        self._on_gpu = config.gpu == "auto" and config.kind != "hnsw" and faiss.get_num_gpus() > 0
        self._lock = threading.Lock()
        self._index = _opened(config, folder / "index.faiss", on_gpu=self._on_gpu)
        self._exact: npt.NDArray[np.float16] | None = None
        if (folder / "exact.f16").stat().st_size:
            exact = np.memmap(folder / "exact.f16", dtype=np.float16, mode="r")
            self._exact = exact.reshape(-1, self._index.d)

    def search(self, vectors: Vectors, k: int) -> list[list[Hit]]:
        """For each of the `vectors` the `k` with the largest inner product, or fewer, best first."""
        candidates = k * max(1, self._refine) if self._exact is not None else k
        if self._on_gpu:  # FAISS on a GPU is used by one thread at a time
            with self._lock:
                scores, numbers = self._index.search(vectors, candidates)
        else:
            scores, numbers = self._index.search(vectors, candidates)
        rows = zip(vectors, numbers, scores, strict=True)  # numbers are -1 where fewer were found
        return [self._ranked(vector, row[row >= 0], its[row >= 0], k) for vector, row, its in rows]

    def _ranked(self, vector: Vectors, numbers: npt.NDArray[np.int64], scores: Vectors, k: int) -> list[Hit]:
        if self._exact is not None and self._refine:
            scores = self._exact[numbers].astype(np.float32) @ vector
        order = np.lexsort((numbers, -scores))[:k]
        return [Hit(int(numbers[n]), float(scores[n])) for n in order]


def _opened(config: VectorsConfig, path: Path, *, on_gpu: bool) -> Any:
    index: Any
    if on_gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.read_index(str(path)))
    else:
        cells = config.kind == "ivfpq"
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if cells else faiss.IO_FLAG_MMAP_IFC)
    if config.kind == "ivfpq":
        index.nprobe = min(config.probes, index.nlist)
    if config.kind == "hnsw":
        index.hnsw.efSearch = config.search_effort
    return index
