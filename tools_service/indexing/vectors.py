"""Encodes the passages of an index and writes their vectors, for dense retrieval.

In: an index folder that holds the passages. Out, in its folder `vectors`: the files of
retrieval/dense.py. flat and hnsw hold all vectors in memory, ivfpq only the codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from tools_service.config import VectorsConfig, WikiSearchConfig
from tools_service.indexing.parallel import map_in_order
from tools_service.retrieval import dense
from tools_service.retrieval.dense import VectorsError
from tools_service.retrieval.encoder import Encoder, Vectors
from tools_service.retrieval.passages import PassageStore

_CHUNK_PASSAGES = 2_048  # passages encoded together
_TRAINING_PER_LIST = 64  # vectors per cell for k-means; FAISS needs at least 39
_CODEBOOK_SIZE = 256  # entries of a product quantizer's codebook; it takes as many vectors to learn it
_TRAINING_PER_CODE = 39


def vector_settings(config: WikiSearchConfig) -> dict[str, Any]:
    """Return what the manifest records of vectors for `config`: the settings that building uses."""
    encoder, vectors = config.encoder, config.vectors
    model = str(Path(encoder.model).resolve()) if Path(encoder.model).is_dir() else encoder.model
    by_kind: dict[str, dict[str, Any]] = {
        "flat": {},
        "ivfpq": {"lists": vectors.lists, "code_bytes": vectors.code_bytes, "exact": vectors.refine > 0},
        "hnsw": {"neighbours": vectors.neighbours, "build_effort": vectors.build_effort},
    }
    return {
        "encoder": {"model": model, **dense.encoder_settings(config)},
        "vectors": {"kind": vectors.kind, **by_kind[vectors.kind]},
    }


def build_vectors(config: WikiSearchConfig, folder: Path, *, workers: int, progress: bool = True) -> None:
    """Encode the passages in `folder` and index them below it, here or on Ray."""
    target = folder / dense.VECTORS_FOLDER
    target.mkdir()
    total = len(PassageStore(folder))
    encoder = Encoder(config.encoder)
    np.save(target / dense.PROBE_FILE, encoder.encode_passages([dense.PROBE]))
    writer = VectorWriter(config.vectors, target, encoder.dimension, total)
    if writer.sample:
        writer.train(np.concatenate(list(_encode(config, folder, writer.sample, encoder, workers))))
    with tqdm(total=total, desc="vectors of passages", unit="", disable=not progress) as bar:
        for vectors in _encode(config, folder, range(total), encoder, workers):
            writer.add(vectors)
            bar.update(len(vectors))
    writer.close()


def _encode(
    config: WikiSearchConfig, folder: Path, numbers: Sequence[int], encoder: Encoder, workers: int
) -> Iterator[Vectors]:
    """Yield the vectors of the passages `numbers`, in order, a chunk at a time."""
    starts = range(0, len(numbers), _CHUNK_PASSAGES)
    chunks = ((numbers[start : start + _CHUNK_PASSAGES],) for start in starts)
    if not workers:
        return map_in_order(lambda: _passage_encoder(folder, encoder), chunks, workers=0)
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = 0 if config.encoder.device == "cpu" else int(resources.get("GPU", 0))
    return map_in_order(
        lambda: _passage_encoder(folder, Encoder(config.encoder)),
        chunks,
        workers=min(workers, gpus) if gpus else workers,
        gpus=1.0 if gpus else 0.0,
    )


def _passage_encoder(folder: Path, encoder: Encoder) -> Callable[[Sequence[int]], Vectors]:
    """Return a function from numbers of passages to their vectors."""
    store = PassageStore(folder)
    return lambda numbers: encoder.encode_passages([store[number] for number in numbers])


class VectorWriter:
    """Writes the index of `total` vectors of length `dimension`: train, add in order, close."""

    def __init__(self, config: VectorsConfig, folder: Path, dimension: int, total: int) -> None:
        """Raise VectorsError if `config` does not suit that many vectors of that length."""
        self._index = _create_index(config, dimension, total)
        self._path = folder / dense.INDEX_FILE
        self._exact_file = (folder / dense.EXACT_FILE).open("wb")
        self._keeps_exact = config.kind == "ivfpq" and config.refine > 0
        sample_size = 0
        if not self._index.is_trained:
            sample_size = max(self._index.nlist * _TRAINING_PER_LIST, _CODEBOOK_SIZE * _TRAINING_PER_CODE)
        self.sample: list[int] = np.random.default_rng(0).permutation(total)[:sample_size].tolist()
        """Numbers of the vectors to train on; empty if this kind needs no training."""

    def train(self, vectors: Vectors) -> None:
        """Learn cells and codes from the vectors of the sample."""
        self._index.train(vectors)

    def add(self, vectors: Vectors) -> None:
        """Add the next vectors."""
        self._index.add(vectors)
        if self._keeps_exact:
            vectors.astype(np.float16).tofile(self._exact_file)

    def close(self) -> None:
        """Write the index."""
        self._exact_file.close()
        faiss.write_index(self._index, str(self._path))


def _create_index(config: VectorsConfig, dimension: int, total: int) -> Any:
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
    if total < _CODEBOOK_SIZE:
        raise VectorsError(
            f"tools.wikisearch.vectors.kind = ivfpq needs {_CODEBOOK_SIZE} passages, there are {total}: "
            "use flat"
        )
    lists = config.lists or max(1, min(int(4 * math.sqrt(total)), total // _TRAINING_PER_LIST))
    cells = faiss.IndexIVFPQ(faiss.IndexFlatIP(dimension), dimension, lists, config.code_bytes, 8, metric)
    cells.pq.cp.min_points_per_centroid = 1  # no warning of every codebook where an index is small
    return cells
