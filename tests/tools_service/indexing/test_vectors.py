"""FAISS's indexes: flat is exact; the approximate ones find what exact search finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools_service.config import VectorsConfig
from tools_service.indexing.vectors import VectorWriter
from tools_service.retrieval.dense import VectorIndex, VectorsError
from tools_service.retrieval.encoder import Vectors

pytestmark = pytest.mark.unit

DIMENSION = 32


def topical(number: int, seed: int) -> Vectors:
    """Unit vectors as texts have them: a few of many topics each, unevenly frequent, and little noise."""
    topics = np.random.default_rng(0).standard_normal((64, DIMENSION))
    draw = np.random.default_rng(seed)
    weights = draw.dirichlet(0.3 / np.arange(1, 65) ** 0.7, size=number)
    vectors = weights @ topics + 0.05 * draw.standard_normal((number, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def opened(folder: Path, vectors: Vectors, **changes: Any) -> VectorIndex:
    config = VectorsConfig(**{"code_bytes": 8, "gpu": "never"} | changes)
    writer = VectorWriter(config, folder, vectors.shape[1], len(vectors))
    if writer.sample:
        writer.train(vectors[writer.sample])
    for part in np.array_split(vectors, 7):
        writer.add(part)
    writer.close()
    return VectorIndex(config, folder)


def exact(vectors: Vectors, queries: Vectors, k: int) -> np.ndarray[Any, Any]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def test_flat_is_exact_search(tmp_path: Path) -> None:
    vectors, queries = topical(3_000, 1), topical(50, 2)
    found = opened(tmp_path, vectors, kind="flat").search(queries, 10)
    assert [[hit.passage for hit in row] for row in found] == exact(vectors, queries, 10).tolist()
    for row, query in zip(found, queries, strict=True):
        np.testing.assert_allclose(
            [hit.score for hit in row], vectors[[hit.passage for hit in row]] @ query, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_the_approximate_indexes_find_nineteen_in_twenty(tmp_path: Path, kind: str) -> None:
    vectors, queries = topical(4_000, 1), topical(200, 2)
    found = opened(tmp_path, vectors, kind=kind).search(queries, 10)
    wanted = exact(vectors, queries, 10)
    shared = [len({hit.passage for hit in row} & set(its)) for row, its in zip(found, wanted, strict=True)]
    assert np.mean(shared) / 10 >= 0.95
    assert all(row == sorted(row, key=lambda hit: (-hit.score, hit.passage)) for row in found)


def test_codes_alone_find_less_than_codes_ranked_again(tmp_path: Path) -> None:
    vectors, queries = topical(4_000, 1), topical(100, 2)
    wanted = exact(vectors, queries, 10)
    shared = {}
    for refine in (0, 10):
        (tmp_path / str(refine)).mkdir()
        index = opened(tmp_path / str(refine), vectors, kind="ivfpq", refine=refine)
        rows = zip(index.search(queries, 10), wanted, strict=True)
        shared[refine] = np.mean([len({hit.passage for hit in row} & set(its)) for row, its in rows])
    assert shared[10] > shared[0] + 1


def test_more_than_there_is_gives_what_there_is(tmp_path: Path) -> None:
    vectors = topical(5, 1)
    (row,) = opened(tmp_path, vectors, kind="flat").search(vectors[:1], 9)
    assert sorted(hit.passage for hit in row) == [0, 1, 2, 3, 4]


def test_settings_that_do_not_fit_the_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorsError, match=r"code_bytes = 7 does not divide .* 32 dimensions"):
        opened(tmp_path, topical(300, 1), kind="ivfpq", code_bytes=7)
    with pytest.raises(VectorsError, match=r"kind = ivfpq needs 256 passages, there are 255: use flat"):
        opened(tmp_path, topical(255, 1), kind="ivfpq")
