"""WikiSearch at scale: build time, disk, memory of a replica, latency, and the recall of FAISS.

    python -m bench.search [--passages 1000000] [--source texts.jsonl …] [--index FOLDER]

Articles are invented (texts.py) or recombined from the `text` of jsonl files; `--index` uses an
existing index. Measured in CPU time and wall time: the build, in this process; then one and two
replicas, each a process with one thread, that answer the same queries (search terms as a model
writes them; every fourth query is a question). A replica's memory is what it does not share with
the other one (USS), measured while both run. For comparison, bm25s scores every passage on the same
postings. Last, recall@10 of the FAISS indexes against exact search with NumPy, on vectors of
passages (latent semantic analysis). Out: the numbers and the limits that they meet, also in
runs/bench/search.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import results, texts
from tools_service.config import VectorsConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput
from tools_service.indexing.build import build_index
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.passages import PassageStore
from tools_service.retrieval.terms import analyze
from tools_service.tools.wikisearch import WikiSearch

PASSAGES_PER_ARTICLE = 3.8
MIN_QUERIES_PER_S, MAX_P99_MS, MAX_MEMORY_MB, MIN_RECALL = 200, 50, 300, 0.95

_BM25S_QUERIES = 40
_VECTORS, _DIMENSION, _VECTOR_QUERIES = 20_000, 128, 500


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure WikiSearch at scale.")
    parser.add_argument("--passages", type=int, default=1_000_000, help="about how many to index")
    parser.add_argument("--source", type=Path, nargs="*", default=[], help="jsonl with text, to recombine")
    parser.add_argument("--index", type=Path, help="use this index instead of building one")
    parser.add_argument("--queries", type=int, default=400, help="per replica")
    args = parser.parse_args()
    folder = results.FOLDER / "search"
    folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    index = args.index
    if index is None:
        index = folder / "index"
        measured["build"] = measure_build(args.source, args.passages, folder, index)
    files = [file for file in index.iterdir() if file.is_file()]
    measured["disk_mb"] = {file.name: round(file.stat().st_size / 1e6, 1) for file in files}
    queries = invent_queries(index, args.queries)
    for replicas in (1, 2):
        measured[f"replicas_{replicas}"] = measure_replicas(index, queries, replicas)
    measured["bm25s"] = measure_bm25s(index, queries[:_BM25S_QUERIES])
    measured["recall"] = measure_recall(index, folder)
    measured["limits"] = limits(measured)
    print(json.dumps(measured, indent=2))
    print(results.write("search", vars(args), measured))


def limits(measured: dict[str, Any]) -> dict[str, bool]:
    """Whether each limit is met."""
    two, recall = measured["replicas_2"], measured["recall"]
    lowest_recall = min(of_kind["recall_at_10"] for of_kind in recall.values())
    return {
        f"at least {MIN_QUERIES_PER_S} queries/s on two cores": two["queries_per_cpu_s"] * 2
        >= MIN_QUERIES_PER_S,
        f"p99 below {MAX_P99_MS} ms of CPU time": two["cpu_p99_ms"] < MAX_P99_MS,
        f"replica below {MAX_MEMORY_MB} MB of its own": two["own_mb"] < MAX_MEMORY_MB,
        "flat is exact": recall["flat"]["recall_at_10"] == 1.0,
        f"recall@10 at least {MIN_RECALL}": lowest_recall >= MIN_RECALL,
    }


def measure_build(source: Sequence[Path], passages: int, folder: Path, index: Path) -> dict[str, Any]:
    """Write the articles (not measured) and index them in this process."""
    language = texts.read(source) if source else texts.invent()
    articles = folder / "articles.jsonl"
    with articles.open("w", encoding="utf-8") as file:
        for title, text in texts.articles(language, int(passages / PASSAGES_PER_ARTICLE)):
            file.write(json.dumps({"title": title, "text": text}) + "\n")
    wall, cpu = time.monotonic(), time.process_time()
    manifest = build_index(WikiSearchConfig(source=(str(articles),), index=index), workers=0, progress=False)
    return {
        "passages": manifest["passages"],
        "terms": manifest["terms"],
        "cpu_s": round(time.process_time() - cpu, 1),
        "clock_s": round(time.monotonic() - wall, 1),
    }


def invent_queries(index: Path, number: int) -> list[str]:
    """Queries for random passages of the index."""
    store = PassageStore(index)
    drawn = np.random.default_rng(1).integers(len(store), size=number)
    return texts.queries([store[int(n)].text for n in drawn], number)


def measure_replicas(index: Path, queries: list[str], replicas: int) -> dict[str, float]:
    """`replicas` processes answer the same queries at once; the worst latency and memory."""
    context = multiprocessing.get_context("spawn")
    barrier, measurements = context.Barrier(replicas), context.Queue()
    arguments = (index, queries, barrier, measurements)
    processes = [context.Process(target=_replica, args=arguments) for _ in range(replicas)]
    for process in processes:
        process.start()
    measured = [measurements.get() for _ in processes]
    for process in processes:
        process.join()
    rates = {name: [len(queries) / sum(replica[name]) for replica in measured] for name in ("clock", "cpu")}
    percentiles = {
        f"{name}_p{share}_ms": max(1e3 * float(np.percentile(replica[name], share)) for replica in measured)
        for name in ("clock", "cpu")
        for share in (50, 99)
    }
    return {
        "queries_per_s": round(sum(rates["clock"]), 1),
        "queries_per_cpu_s": round(float(np.mean(rates["cpu"])), 1),
        **{name: round(value, 2) for name, value in percentiles.items()},
        "own_mb": round(max(replica["own_mb"] for replica in measured), 1),
    }


def _replica(index: Path, queries: list[str], barrier: Barrier, measurements: Any) -> None:
    search = WikiSearch(WikiSearchConfig(index=index))
    for query in queries:  # loads the pages that the queries need, as in a replica that has run for a while
        search([ToolInput(query)])
    barrier.wait()
    clock, cpu = _times(lambda query: search([ToolInput(query)]), queries)
    barrier.wait()
    own_mb = psutil.Process().memory_full_info().uss / 1e6
    barrier.wait()
    measurements.put({"clock": clock, "cpu": cpu, "own_mb": own_mb})


def _times(ask: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Wall seconds and CPU seconds of each query."""
    clock, cpu = [], []
    for query in queries:
        before = time.perf_counter(), time.process_time()
        ask(query)
        clock.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return clock, cpu


def measure_bm25s(index: Path, queries: Sequence[str]) -> dict[str, Any]:
    """bm25s and our BM25 on the same postings, for the best passage and the best five."""
    import bm25s  # not at the top: replicas import this module, and their memory is measured

    ours, bm25s_index = Bm25(index), bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    arrays = {"data": "scores.npy", "indices": "postings.npy", "indptr": "starts.npy"}
    bm25s_index.scores = {
        name: np.load(index / file, mmap_mode="r").view(np.ndarray) for name, file in arrays.items()
    }
    bm25s_index.scores["num_docs"] = len(PassageStore(index))
    bm25s_index.nonoccurrence_array = None
    terms = [analyze(query) for query in queries]
    numbers = [[ours.vocabulary.term_id(term) for term in query] for query in terms]
    known = [[number for number in query if number is not None] for query in numbers]

    def search_bm25s(numbers: list[int], k: int) -> Any:
        scores = bm25s_index.get_scores_from_ids(numbers)
        return scores.argmax() if k == 1 else np.argpartition(scores, -k)[-k:]

    measured = {}
    for k in (1, 5):
        for name, search, inputs in (
            ("bm25s", lambda numbers, k=k: search_bm25s(numbers, k), known),
            ("ours", lambda query, k=k: ours.search_terms(query, k), terms),
        ):
            _, cpu = _times(search, inputs)
            measured[f"{name}_best_{k}_cpu_ms"] = {
                "mean": round(1e3 * float(np.mean(cpu)), 2),
                "p99": round(1e3 * float(np.percentile(cpu, 99)), 2),
            }
    return measured


def measure_recall(index: Path, folder: Path) -> dict[str, Any]:
    """The share of the exact best ten passages that each kind of FAISS index finds."""
    from tools_service.indexing.vectors import VectorWriter  # loads FAISS, which BM25 does not need
    from tools_service.retrieval.dense import VectorIndex

    vectors = passage_vectors(index, _VECTORS + _VECTOR_QUERIES)
    queries, vectors = vectors[:_VECTOR_QUERIES], vectors[_VECTOR_QUERIES:]
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    measured = {}
    for kind in ("flat", "hnsw", "ivfpq"):
        config = VectorsConfig(kind=kind, code_bytes=_DIMENSION // 4)
        target = folder / kind
        target.mkdir(exist_ok=True)
        before = time.process_time()
        writer = VectorWriter(config, target, _DIMENSION, len(vectors))
        if writer.sample:
            writer.train(vectors[writer.sample])
        writer.add(vectors)
        writer.close()
        build_s = time.process_time() - before
        opened = VectorIndex(config, target)
        _, cpu = _times(lambda query, opened=opened: opened.search(query[None], 10), queries)
        hits = [
            len({hit.passage for hit in row} & set(best.tolist()))
            for row, best in zip(opened.search(queries, 10), exact, strict=True)
        ]
        measured[kind] = {
            "recall_at_10": round(float(np.mean(hits)) / 10, 4),
            "build_cpu_s": round(build_s, 1),
            "query_cpu_ms": round(1e3 * float(np.mean(cpu)), 2),
            "bytes_per_vector": round((target / "index.faiss").stat().st_size / len(vectors)),
        }
    return measured


def passage_vectors(index: Path, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[number, D]: unit vectors of the first passages by latent semantic analysis.

    This is tf-idf projected on the strongest directions of these passages, which are found with
    random vectors and one power iteration (Halko, Martinsson and Tropp 2011). As in an encoder's
    vectors, a few directions matter most.
    """
    store, bm25 = PassageStore(index), Bm25(index)
    numbers: dict[str, int] = {}
    rows = []
    for n in range(number):
        terms = set(analyze(f"{store[n].title} {store[n].text}"))
        rows.append(np.array([numbers.setdefault(term, len(numbers)) for term in sorted(terms)], dtype=int))
    idf = np.log(len(store) / np.array([len(bm25.postings(term)[0]) for term in numbers]))
    directions = np.random.default_rng(0).standard_normal((len(numbers), _DIMENSION)).astype(np.float32)
    directions *= idf[:, None]
    stronger = np.zeros_like(directions)
    for row in rows:
        stronger[row] += directions[row].sum(axis=0)
    directions = np.linalg.qr(stronger * idf[:, None])[0].astype(np.float32) * idf[:, None]
    vectors = np.stack([directions[row].sum(axis=0) for row in rows]).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
