"""Dense and hybrid retrieval from a source to ranked passages, and indexes that do not fit what is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools_service.encoders import bert
from tests.tools_service.encyclopedia import indexed
from tools_service.config import EncoderConfig, VectorsConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput
from tools_service.indexing.build import ensure_index
from tools_service.retrieval.dense import VectorsError
from tools_service.retrieval.encoder import Encoder
from tools_service.retrieval.index import IndexFolderError, read_manifest
from tools_service.retrieval.passages import PassageStore
from tools_service.retrieval.retriever import Retriever, fuse
from tools_service.tools.wikisearch import WikiSearch

pytestmark = pytest.mark.unit

WORDS = [f"w{n}" for n in range(40)]
ARTICLES = [(WORDS[n % 40], " ".join(WORDS[(n * m) % 40] for m in range(3, 9))) for n in range(60)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> WikiSearchConfig:
    folder = tmp_path_factory.mktemp("dense")
    encoder = EncoderConfig(model=bert(folder / "bert", WORDS), max_tokens=32, device="cpu")
    return indexed(folder, ARTICLES, retriever="hybrid", encoder=encoder, vectors=VectorsConfig(gpu="never"))


def test_dense_search_is_exact_search_with_the_encoder(made: WikiSearchConfig) -> None:
    store, encoder = PassageStore(made.index), Encoder(made.encoder)
    queries = ["w3 w9", "w17", "w2 w4 w8"]
    scores = (
        encoder.encode_queries(queries) @ encoder.encode_passages([store[n] for n in range(len(store))]).T
    )
    found = Retriever(made.model_copy(update={"retriever": "dense"})).search(queries, 5)
    for row, its in zip(found, scores, strict=True):
        np.testing.assert_allclose([hit.score for hit in row], np.sort(its)[::-1][:5], atol=1e-5)
        np.testing.assert_allclose([its[hit.passage] for hit in row], [hit.score for hit in row], atol=1e-5)


def test_hybrid_search_fuses_both_rankings(made: WikiSearchConfig) -> None:
    lexical, dense, hybrid = (
        Retriever(made.model_copy(update={"retriever": kind})) for kind in ("bm25", "dense", "hybrid")
    )
    query = ["w5 w7"]
    wanted = fuse([lexical.search(query, 100)[0], dense.search(query, 100)[0]])
    assert hybrid.search(query, 4) == [wanted[:4]]
    assert hybrid.search([], 4) == []
    assert WikiSearch(made)([ToolInput("w5"), ToolInput("")])[1].reason == "empty query"


def test_an_index_with_vectors_serves_bm25_and_is_kept(made: WikiSearchConfig) -> None:
    before = read_manifest(made.index)
    ensure_index(made.model_copy(update={"retriever": "bm25"}))
    ensure_index(made)
    assert read_manifest(made.index) == before
    assert before["settings"]["vectors"] == {"kind": "flat"}
    assert before["settings"]["encoder"]["passage_prefix"] == "passage: "


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("encoder", {"pooling": "cls"}, r"encoder\.pooling = 'cls': .* was built with 'mean'"),
        ("encoder", {"passage_prefix": ""}, r"encoder\.passage_prefix = '': .* was built with 'passage: '"),
        ("vectors", {"kind": "hnsw"}, r"vectors\.kind = 'hnsw': .* was built with 'flat'"),
    ],
)
def test_opening_with_other_settings_is_refused(
    made: WikiSearchConfig, section: str, change: dict[str, Any], message: str
) -> None:
    other = getattr(made, section).model_copy(update=change)
    with pytest.raises(VectorsError, match=message):
        Retriever(made.model_copy(update={section: other}))


def test_opening_with_another_encoder_is_refused_and_with_a_copy_is_not(
    made: WikiSearchConfig, tmp_path: Path
) -> None:
    for seed in (0, 1):
        model = bert(tmp_path / str(seed), WORDS, seed=seed)
        config = made.model_copy(update={"encoder": made.encoder.model_copy(update={"model": model})})
        if seed == 0:
            Retriever(config)
        else:
            with pytest.raises(VectorsError, match=r"encoder\.model: .* is not the encoder that .* build"):
                Retriever(config)


def test_an_index_without_vectors_says_how_to_build_them(tmp_path: Path) -> None:
    made = indexed(tmp_path, ARTICLES)
    with pytest.raises(VectorsError, match=r"no vectors; build it with .* index --retriever dense"):
        Retriever(made.model_copy(update={"retriever": "dense"}))


DAMAGES = {
    "emptied": lambda whole: b"",
    "halved": lambda whole: whole[: len(whole) // 2],
    "without its last byte": lambda whole: whole[:-1],
    "of another kind": lambda whole: b"x" * len(whole),
    "missing": None,
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["index.faiss", "probe.npy", "exact.f16"])
def test_damaged_vectors_are_named(
    made: WikiSearchConfig, tmp_path: Path, name: str, damage: str, recorded: bool
) -> None:
    copy = made.model_copy(update={"index": tmp_path / "index"})
    shutil.copytree(made.index, copy.index)
    if not recorded:  # an earlier version
        manifest = json.loads((copy.index / "manifest.json").read_text())
        (copy.index / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    path, change = copy.index / "vectors" / name, DAMAGES[damage]
    if change is None:
        path.unlink()
    elif name == "exact.f16":  # empty where vectors are flat
        path.write_bytes(b"abc")
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IndexFolderError, match=rf"vectors/{name} is damaged"):
        Retriever(copy)
