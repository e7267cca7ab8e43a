"""Dense retrieval: queries are encoded, and the vectors of an index searched.

In: an index folder with the folder `vectors` (indexing/vectors.py), and queries. Out: hits. The
vector of a fixed text (`probe.npy`) shows whether the encoder is the one that built the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.encoder import Encoder
from tools_service.retrieval.passages import Hit, Passage
from tools_service.retrieval.vectors import VectorIndex, VectorsError

VECTORS_FOLDER, PROBE_FILE = "vectors", "probe.npy"
PROBE = Passage("Probe", "What the encoder makes of these words identifies it.")

# Relative distance of two probes. Another dtype or device moves a vector by a hundredth at most,
# another encoder by about its length.
_TOLERANCE = 0.05


def encoder_settings(config: WikiSearchConfig) -> dict[str, Any]:
    """Return the encoder's settings that change the passages' vectors."""
    return config.encoder.model_dump(include={"pooling", "passage_prefix", "normalize", "max_tokens"})


class DenseIndex:
    """The vectors of an index, and the encoder for its queries. Threads may search at once."""

    def __init__(self, config: WikiSearchConfig, manifest: dict[str, Any]) -> None:
        """Raise VectorsError if the index has no vectors, or vectors of another kind or encoder."""
        built = manifest["settings"]
        _require_same_settings(config, built)
        folder = config.index / VECTORS_FOLDER
        self._encoder = Encoder(config.encoder)
        stored = np.load(folder / PROBE_FILE)
        probe = self._encoder.encode_passages([PROBE])
        tolerance = _TOLERANCE * np.linalg.norm(stored)
        if stored.shape != probe.shape or np.linalg.norm(stored - probe) > tolerance:
            raise VectorsError(
                f"tools.wikisearch.encoder.model: {config.encoder.model!r} is not the encoder that "
                f"{config.index} was built with ({built['encoder']['model']!r}); name that one, or build the "
                "index again"
            )
        self._vectors = VectorIndex(config.vectors, folder)

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
            if built[section][name] != value:
                raise VectorsError(
                    f"tools.wikisearch.{section}.{name} = {value!r}: the index {config.index} was built with "
                    f"{built[section][name]!r}; set that, or build it again"
                )
