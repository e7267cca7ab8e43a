"""What WikiSearch takes and does at scale: building, disk, memory of a replica, latency, and FAISS's recall.

    python -m bench.search [--passages 1000000] [--source texts.jsonl …] [--index FOLDER]

Articles are invented (texts.py), or recombined from the `text` of jsonl files; `--index` takes an index that
is there. Measured, in CPU time as well as on the clock: the build, in this process; then one and two
replicas, each a process with one thread, that answer the same queries (search terms as a model writes them,
every fourth a question). A replica's memory is what it does not share with the other (USS), taken while both
are there. Beside it bm25s, which scores every passage, on the same postings. Last, recall@10 of the FAISS
indexes on vectors of passages (latent semantic analysis), against exact search with numpy. Out: the
numbers, also in runs/bench/search.json, and which of the bars they pass.
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
from tools_service.indexing.build import build_index
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.passages import PassageStore
from tools_service.retrieval.terms import analyze
from tools_service.tools.contract import ToolInput
from tools_service.tools.wikisearch import WikiSearch

PASSAGES_PER_ARTICLE = 3.8
LEAST_PER_S, MOST_P99_MS, MOST_MEMORY_MB, LEAST_RECALL = 200, 50, 300, 0.95

_EXHAUSTIVE = 40  # queries that bm25s answers
_VECTORS, _DIMENSION, _VECTOR_QUERIES = 20_000, 128, 500


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure WikiSearch at scale.")
    parser.add_argument("--passages", type=int, default=1_000_000, help="about how many to index")
    parser.add_argument("--source", type=Path, nargs="*", default=[], help="jsonl with text, to recombine")
    parser.add_argument("--index", type=Path, help="an index that is there, instead of building one")
    parser.add_argument("--queries", type=int, default=400, help="queries of each replica")
    arguments = parser.parse_args()
    folder = results.FOLDER / "search"
    folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    index = arguments.index
    if index is None:
        index = folder / "index"
        measured["build"] = measure_build(arguments.source, arguments.passages, folder, index)
    measured["disk_mb"] = {
        file.name: round(file.stat().st_size / 1e6, 1) for file in index.iterdir() if file.is_file()
    }
    queries = invent_queries(index, arguments.queries)
    for replicas in (1, 2):
        measured[f"replicas_{replicas}"] = measure_replicas(index, queries, replicas)
    measured["bm25s"] = measure_exhaustive(index, queries[:_EXHAUSTIVE])
    measured["recall"] = measure_recall(index, folder)
    measured["bars"] = bars(measured)
    print(json.dumps(measured, indent=2))
    print(results.write("search", vars(arguments), measured))


def bars(measured: dict[str, Any]) -> dict[str, bool]:
    """Whether what was measured is what it should be."""
    two, recall = measured["replicas_2"], measured["recall"]
    return {
        f"at least {LEAST_PER_S} queries/s on two cores": two["queries_per_cpu_s"] * 2 >= LEAST_PER_S,
        f"p99 below {MOST_P99_MS} ms of CPU time": two["cpu_p99_ms"] < MOST_P99_MS,
        f"replica below {MOST_MEMORY_MB} MB of its own": two["own_mb"] < MOST_MEMORY_MB,
        "flat is exact": recall["flat"]["recall_at_10"] == 1.0,
        f"recall@10 at least {LEAST_RECALL}": min(one["recall_at_10"] for one in recall.values())
        >= LEAST_RECALL,
    }


def measure_build(source: Sequence[Path], passages: int, folder: Path, index: Path) -> dict[str, Any]:
    """Write the articles (not measured) and index them in this process."""
    language = texts.read(source) if source else texts.invent()
    with (folder / "articles.jsonl").open("w", encoding="utf-8") as file:
        for title, text in texts.articles(language, int(passages / PASSAGES_PER_ARTICLE)):
            file.write(json.dumps({"title": title, "text": text}) + "\n")
    clock, cpu = time.monotonic(), time.process_time()
    manifest = build_index(
        WikiSearchConfig(source=(str(folder / "articles.jsonl"),), index=index), workers=0, progress=False
    )
    return {
        "passages": manifest["passages"],
        "terms": manifest["terms"],
        "cpu_s": round(time.process_time() - cpu, 1),
        "clock_s": round(time.monotonic() - clock, 1),
    }


def invent_queries(index: Path, number: int) -> list[str]:
    """Queries on passages drawn from the index."""
    store = PassageStore(index)
    drawn = np.random.default_rng(1).integers(len(store), size=number)
    return texts.queries([store[int(n)].text for n in drawn], number)


def measure_replicas(index: Path, queries: list[str], replicas: int) -> dict[str, float]:
    """So many processes answer the same queries at once: the worst latency and memory among them."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(replicas), context.Queue()
    processes = [
        context.Process(target=_replica, args=(index, queries, barrier, answers)) for _ in range(replicas)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "queries_per_s": round(sum(len(queries) / sum(one["clock"]) for one in found), 1),
        "queries_per_cpu_s": round(float(np.mean([len(queries) / sum(one["cpu"]) for one in found])), 1),
        **{
            f"{what}_p{share}_ms": round(
                max(1e3 * float(np.percentile(one[what], share)) for one in found), 2
            )
            for what in ("clock", "cpu")
            for share in (50, 99)
        },
        "own_mb": round(max(one["own_mb"] for one in found), 1),
    }


def _replica(index: Path, queries: list[str], barrier: Barrier, answers: Any) -> None:
    search = WikiSearch(WikiSearchConfig(index=index))
    for query in queries:  # pages in what the queries touch, as a replica that has run for a while has
        search([ToolInput(query)])
    barrier.wait()
    clock, cpu = _times(lambda query: search([ToolInput(query)]), queries)
    barrier.wait()
    own = psutil.Process().memory_full_info().uss / 1e6
    barrier.wait()
    answers.put({"clock": clock, "cpu": cpu, "own_mb": own})


def _times(ask: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Seconds on the clock and of CPU time for each query."""
    clock, cpu = [], []
    for query in queries:
        before = time.perf_counter(), time.process_time()
        ask(query)
        clock.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return clock, cpu


def measure_exhaustive(index: Path, queries: Sequence[str]) -> dict[str, Any]:
    """bm25s and ours on the same postings, one query at a time, best passage and best five."""
    import bm25s  # here, as replicas import this module, and their memory is measured

    ours, theirs = Bm25(index), bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    arrays = {"data": "scores.npy", "indices": "postings.npy", "indptr": "starts.npy"}
    theirs.scores = {
        name: np.load(index / file, mmap_mode="r").view(np.ndarray) for name, file in arrays.items()
    }
    theirs.scores["num_docs"] = len(PassageStore(index))
    theirs.nonoccurrence_array = None
    numbers = [[ours.vocabulary.term_id(term) for term in analyze(query)] for query in queries]
    known = [[number for number in one if number is not None] for one in numbers]

    def exhaustive(one: list[int], k: int) -> Any:
        scores = theirs.get_scores_from_ids(one)
        return scores.argmax() if k == 1 else np.argpartition(scores, -k)[-k:]

    terms = [analyze(query) for query in queries]
    found = {}
    for k in (1, 5):
        for name, ask, asked in (
            ("bm25s", lambda one, k=k: exhaustive(one, k), known),
            ("ours", lambda one, k=k: ours.search_terms(one, k), terms),
        ):
            _, cpu = _times(ask, asked)
            found[f"{name}_best_{k}_cpu_ms"] = {
                "mean": round(1e3 * float(np.mean(cpu)), 2),
                "p99": round(1e3 * float(np.percentile(cpu, 99)), 2),
            }
    return found


def measure_recall(index: Path, folder: Path) -> dict[str, Any]:
    """Share of the exact ten that each kind of FAISS index finds, on vectors of the first passages."""
    from tools_service.indexing.vectors import VectorWriter  # FAISS, which replicas of BM25 do not load
    from tools_service.retrieval.dense import VectorIndex

    vectors = passage_vectors(index, _VECTORS + _VECTOR_QUERIES)
    queries, vectors = vectors[:_VECTOR_QUERIES], vectors[_VECTOR_QUERIES:]
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    found = {}
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
        built = time.process_time() - before
        opened = VectorIndex(config, target)
        _, cpu = _times(lambda one, opened=opened: opened.search(one[None], 10), queries)
        shared = [
            len({hit.passage for hit in row} & set(its.tolist()))
            for row, its in zip(opened.search(queries, 10), exact, strict=True)
        ]
        found[kind] = {
            "recall_at_10": round(float(np.mean(shared)) / 10, 4),
            "build_cpu_s": round(built, 1),
            "query_cpu_ms": round(1e3 * float(np.mean(cpu)), 2),
            "bytes_per_vector": round((target / "index.faiss").stat().st_size / len(vectors)),
        }
    return found


def passage_vectors(index: Path, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[number, D]: the first passages by latent semantic analysis, of length 1.

    That is tf-idf projected on the strongest directions of these passages, found with random vectors and one
    power iteration (Halko, Martinsson and Tropp 2011): a few matter much, as in an encoder's vectors.
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
