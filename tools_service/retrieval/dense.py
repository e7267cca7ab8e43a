"""Dense retrieval: the passages of an index encoded and indexed, queries encoded and searched.

In: an index folder that holds the passages. Out, in its folder `vectors`: the FAISS index (vectors.py), and
the vector of a fixed text (`probe.npy`), by which another encoder is noticed, wherever its files lie. The
encoder's settings stand in the manifest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.encoder import Encoder
from tools_service.retrieval.parallel import in_order
from tools_service.retrieval.passages import Hit, Passage, PassageStore
from tools_service.retrieval.vectors import VectorIndex, Vectors, VectorsError, VectorWriter

_RANGE = 2_048  # passages encoded together
_PROBE = Passage("Probe", "What the encoder makes of these words identifies it.")
_SAME = 0.05  # other types and devices move a vector by a hundredth at most, another encoder by its length


def vector_settings(config: WikiSearchConfig) -> dict[str, Any]:
    """What the manifest says of how vectors for `config` were built; what only searching uses is left out."""
    encoder, vectors = config.encoder, config.vectors
    model = str(Path(encoder.model).resolve()) if Path(encoder.model).is_dir() else encoder.model
    by_kind: dict[str, dict[str, Any]] = {
        "flat": {},
        "ivfpq": {"lists": vectors.lists, "code_bytes": vectors.code_bytes, "exact": vectors.refine > 0},
        "hnsw": {"neighbours": vectors.neighbours, "build_effort": vectors.build_effort},
    }
    return {
        "encoder": {"model": model, **_use(config)},
        "vectors": {"kind": vectors.kind, **by_kind[vectors.kind]},
    }


def _use(config: WikiSearchConfig) -> dict[str, Any]:
    """The settings of an encoder that change the passages' vectors."""
    return config.encoder.model_dump(include={"pooling", "passage_prefix", "normalize", "max_tokens"})


def build_vectors(config: WikiSearchConfig, folder: Path, *, workers: int, progress: bool = True) -> None:
    """Encode the passages in `folder` and index them, below it. With workers on Ray, each has an encoder."""
    target = folder / "vectors"
    target.mkdir()
    total = len(PassageStore(folder))
    encoder = Encoder(config.encoder)
    np.save(target / "probe.npy", encoder.passages([_PROBE]))
    writer = VectorWriter(config.vectors, target, encoder.dimension, total)
    if writer.sample:
        writer.train(np.concatenate(list(_encoded(config, folder, writer.sample, encoder, workers))))
    bar = tqdm(total=total, desc="vectors of passages", unit="", disable=not progress)
    for vectors in _encoded(config, folder, range(total), encoder, workers):
        writer.add(vectors)
        bar.update(len(vectors))
    bar.close()
    writer.close()


def _encoded(
    config: WikiSearchConfig, folder: Path, numbers: Sequence[int], encoder: Encoder, workers: int
) -> Iterator[Vectors]:
    parts = ((numbers[start : start + _RANGE],) for start in range(0, len(numbers), _RANGE))
    if not workers:
        return in_order(lambda: _Encoding(config, folder, encoder), parts, workers=0)
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = 0 if config.encoder.device == "cpu" else int(resources.get("GPU", 0))
    return in_order(
        functools.partial(_Encoding, config, folder.resolve()),
        parts,
        workers=min(workers, gpus) if gpus else workers,
        gpus=1.0 if gpus else 0.0,
    )


class _Encoding:
    """Numbers of passages to their vectors."""

    def __init__(self, config: WikiSearchConfig, folder: Path, encoder: Encoder | None = None) -> None:
        self._store = PassageStore(folder)
        self._encoder = encoder or Encoder(config.encoder)

    def __call__(self, numbers: Sequence[int]) -> Vectors:
        return self._encoder.passages([self._store[number] for number in numbers])


class DenseIndex:
    """The vectors of an index, and the encoder of its queries. Any number of threads may search."""

    def __init__(self, config: WikiSearchConfig, manifest: dict[str, Any]) -> None:
        """VectorsError if the index has no vectors, or vectors of another kind or encoder."""
        _require_same(config, manifest["settings"])
        self._encoder = Encoder(config.encoder)
        known = np.load(config.index / "vectors" / "probe.npy")
        found = self._encoder.passages([_PROBE])
        if known.shape != found.shape or np.linalg.norm(known - found) > _SAME * np.linalg.norm(known):
            raise VectorsError(
                f"tools.wikisearch.encoder.model: {config.encoder.model!r} is not the encoder that "
                f"{config.index} was built with ({manifest['settings']['encoder']['model']!r}); name that "
                "one, or build the index again"
            )
        self._vectors = VectorIndex(config.vectors, config.index / "vectors")

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` passages whose vectors have the largest inner product with each query's, best first."""
        return self._vectors.search(self._encoder.queries(queries), k) if queries else []


def _require_same(config: WikiSearchConfig, built: dict[str, Any]) -> None:
    if "vectors" not in built:
        raise VectorsError(
            f"tools.wikisearch.retriever = {config.retriever}: the index {config.index} has no vectors; "
            f"build it with python -m tools_service index --retriever {config.retriever}"
        )
    wanted = {"encoder": _use(config), "vectors": {"kind": config.vectors.kind}}
    for section, fields in wanted.items():
        for name, value in fields.items():
            if built[section][name] != value:
                raise VectorsError(
                    f"tools.wikisearch.{section}.{name} = {value!r}: the index {config.index} was built with "
                    f"{built[section][name]!r}; set that, or build it again"
                )
