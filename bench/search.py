"""WikiSearch at scale: build time, disk, memory of a replica, latency, and the recall of FAISS.

    python -m bench.search [--passages 1000000] [--workers 2] [--source texts.jsonl …] [--index FOLDER]

Articles are invented (texts.py), or the sentences of the `text` of jsonl files are mixed; `--index`
measures searching in an existing index. First the build: time, CPU time, and the peaks of memory and
disk of all its processes. Then queries, search terms as a model writes them; every fourth is a
question. They are answered cold (nothing of the index in the page cache), then warm by one replica, by
one with two threads, and by two replicas at once. A replica's memory is what it does not share with the
other one (USS), measured while both run. For comparison, bm25s scores every passage on the same
postings. Last, where an index was built, recall@10 of the FAISS indexes against exact search with
NumPy, on vectors of passages (latent semantic analysis). Out: the numbers and the limits that they
meet, also in runs/bench/search.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zstandard

from bench import results, texts
from tools_service.config import VectorsConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput
from tools_service.indexing.build import build_index
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.passages import PassageStore
from tools_service.retrieval.terms import analyze
from tools_service.tools.wikisearch import WikiSearch

PASSAGES_PER_ARTICLE = 3.8
PAPER_PASSAGES = 20_000_000
LIMITS, PAPER_LIMITS = (200, 50), (50, 250)  # queries/s and ms at p99; at the paper's size
MAX_MEMORY_MB, MIN_RECALL = 300, 0.95

_BM25S_QUERIES, _COLD_QUERIES = 20, 100
_SENTENCES = 1_000_000  # mixed from those of the source
_PARTS = 16  # files of articles
_SAMPLE_S = 5.0
_VECTORS, _DIMENSION, _VECTOR_QUERIES = 20_000, 128, 500


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure WikiSearch at scale.")
    parser.add_argument("--passages", type=int, default=1_000_000, help="about how many to index")
    parser.add_argument("--source", type=Path, nargs="*", default=[], help="jsonl with text, to recombine")
    parser.add_argument("--index", type=Path, help="use this index instead of building one")
    parser.add_argument("--workers", type=int, default=0, help="processes on Ray that build; 0 is none")
    parser.add_argument("--build-only", action="store_true", help="measure the build alone")
    parser.add_argument("--queries", type=int, default=400, help="per replica")
    args = parser.parse_args()
    folder = results.FOLDER / "search"
    folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    index = args.index or folder / "index"
    if args.index is None:
        measured["build"] = measure_build(args, folder, index)
    if not args.build_only:
        measured |= measure_search(index, args.queries)
        if args.index is None:
            measured["recall"] = measure_recall(index, folder)
        measured["limits"] = limits(measured)
    print(json.dumps(measured, indent=2))
    print(results.write("search", vars(args), measured))


def measure_search(index: Path, number: int) -> dict[str, Any]:
    """Disk, and `number` queries: cold, warm in one process and in two, beside bm25s."""
    queries = invent_queries(index, number)
    return {
        "passages": len(PassageStore(index)),
        "disk_mb": {file.name: round(file.stat().st_size / 1e6, 1) for file in index.iterdir()},
        "cold": measure_cold(index, queries[:_COLD_QUERIES]),
        "replicas_1": measure_replicas(index, queries, 1),
        "replicas_1_of_2_threads": measure_replicas(index, queries, 1, threads=2),
        "replicas_2": measure_replicas(index, queries, 2),
        "bm25s": measure_bm25s(index, queries[:_BM25S_QUERIES]),
    }


def limits(measured: dict[str, Any]) -> dict[str, bool]:
    """Whether each limit is met."""
    two = measured["replicas_2"]
    queries_per_s, p99_ms = LIMITS if measured["passages"] < PAPER_PASSAGES else PAPER_LIMITS
    met = {
        f"at least {queries_per_s} queries/s on two cores": two["queries_per_cpu_s"] * 2 >= queries_per_s,
        f"p99 below {p99_ms} ms of CPU time": two["cpu_p99_ms"] < p99_ms,
        f"replica below {MAX_MEMORY_MB} MB of its own": two["own_mb"] < MAX_MEMORY_MB,
    }
    if recall := measured.get("recall"):
        met["flat is exact"] = recall["flat"]["recall_at_10"] == 1.0
        lowest = min(of_kind["recall_at_10"] for of_kind in recall.values())
        met[f"recall@10 at least {MIN_RECALL}"] = lowest >= MIN_RECALL
    return met


def measure_build(args: argparse.Namespace, folder: Path, index: Path) -> dict[str, Any]:
    """Write the articles, compressed, and index them; the articles are removed."""
    language = texts.mix(texts.read(args.source), _SENTENCES) if args.source else texts.invent()
    source = folder / "source"
    source.mkdir(exist_ok=True)
    began = time.monotonic()
    per_part = math.ceil(args.passages / PASSAGES_PER_ARTICLE / _PARTS)
    # A forked process shares the language; it is not pickled.
    fork = multiprocessing.get_context("fork")
    with fork.Pool(max(1, args.workers), _shared.append, (language,)) as pool:
        pool.starmap(_write_part, [(source, part, per_part) for part in range(_PARTS)])
    writing_s = time.monotonic() - began
    source_mb = _megabytes(source)
    config = WikiSearchConfig(source=(str(source),), index=index)
    with BuildUse(index.parent) as used:
        manifest = build_index(config, workers=args.workers, progress=args.workers > 0)
    shutil.rmtree(source)
    return {
        "passages": manifest["passages"],
        "articles": manifest["articles"],
        "terms": manifest["terms"],
        "writing_source_s": round(writing_s, 1),
        "source_mb": source_mb,
        **used.measured,
    }


_shared: list[texts.Language] = []  # one, in the processes that write articles


def _write_part(folder: Path, part: int, number: int) -> None:
    with zstandard.open(folder / f"articles-{part:03}.jsonl.zst", "wt", encoding="utf-8") as file:
        for title, text in texts.articles(_shared[0], number, seed=part):
            file.write(json.dumps({"title": title, "text": text}) + "\n")


def _megabytes(folder: Path) -> float:
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            sizes.append(path.stat().st_blocks * 512)
    return round(sum(sizes) / 1e6, 1)


class BuildUse:
    """Time of a build, CPU time and memory of its processes, and disk below `folder`, sampled."""

    def __init__(self, folder: Path) -> None:
        self.measured: dict[str, float] = {}
        self._folder, self._cpu_s, self._ended = folder, dict[int, float](), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> BuildUse:
        self._began, self._before = time.monotonic(), _megabytes(self._folder)
        self._began_cpu_s = sum(psutil.Process().cpu_times()[:2])
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.measured["clock_s"] = round(time.monotonic() - self._began, 1)
        self._ended.set()
        self._sampler.join()
        self.measured["cpu_s"] = round(sum(self._cpu_s.values()) - self._began_cpu_s, 1)

    def _sample(self) -> None:
        ours = psutil.Process()
        while not self._ended.wait(_SAMPLE_S):
            anonymous = []
            for process in [ours, *ours.children(recursive=True)]:
                with suppress(psutil.Error, OSError, StopIteration):
                    # A child that has ended keeps its last value.
                    self._cpu_s[process.pid] = sum(process.cpu_times()[:2])
                    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    line = next(line for line in rollup.splitlines() if line.startswith("Anonymous:"))
                    anonymous.append(int(line.split()[1]) / 1e3)
            for name, value in (
                ("own_memory_of_a_process_mb", max(anonymous, default=0.0)),
                ("own_memory_of_all_mb", sum(anonymous)),
                ("disk_mb", _megabytes(self._folder) - self._before),
            ):
                self.measured[f"peak_{name}"] = round(max(self.measured.get(f"peak_{name}", 0.0), value), 1)


def invent_queries(index: Path, number: int) -> list[str]:
    """Queries for random passages of the index."""
    store = PassageStore(index)
    drawn = np.random.default_rng(1).integers(len(store), size=number)
    return texts.queries([store[int(n)].text for n in drawn], number)


def measure_cold(index: Path, queries: list[str]) -> dict[str, float]:
    """A new process answers the queries once, with no file of the index in the page cache."""
    for file in index.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # what is not yet written cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return measure_replicas(index, queries, 1, warm=False)


def measure_replicas(
    index: Path, queries: list[str], replicas: int, *, threads: int = 1, warm: bool = True
) -> dict[str, float]:
    """`replicas` processes answer the same queries at once; the worst latency and memory."""
    context = multiprocessing.get_context("spawn")
    barrier, measurements = context.Barrier(replicas), context.Queue()
    arguments = (index, queries, threads, warm, barrier, measurements)
    processes = [context.Process(target=_replica, args=arguments) for _ in range(replicas)]
    for process in processes:
        process.start()
    measured = [measurements.get() for _ in processes]
    for process in processes:
        process.join()
    rates = {
        name: [len(queries) / replica[total] for replica in measured]
        for name, total in (("clock", "clock_s"), ("cpu", "cpu_s"))
    }
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
        "read_mb": round(sum(replica["read_mb"] for replica in measured), 1),
    }


def _replica(
    index: Path, queries: list[str], threads: int, warm: bool, barrier: Barrier, measurements: Any
) -> None:
    process, search = psutil.Process(), WikiSearch(WikiSearchConfig(index=index))

    def ask(query: str) -> None:
        search([ToolInput(query)])

    if warm:  # loads the pages that the queries need, as in a replica that has run for a while
        _times(ask, queries)
    barrier.wait()
    began, cpu, read = time.perf_counter(), time.process_time(), process.io_counters().read_bytes
    with ThreadPoolExecutor(threads) as pool:
        times = list(pool.map(lambda query: _time(ask, query), queries))
    totals = {"clock_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    barrier.wait()
    own_mb = process.memory_full_info().uss / 1e6
    read_mb = (process.io_counters().read_bytes - read) / 1e6
    barrier.wait()
    clock, cpu_times = zip(*times, strict=True)
    measurements.put({"clock": clock, "cpu": cpu_times, **totals, "own_mb": own_mb, "read_mb": read_mb})


def _times(ask: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Wall seconds and CPU seconds of each query."""
    times = [_time(ask, query) for query in queries]
    return [clock for clock, _ in times], [cpu for _, cpu in times]


def _time(ask: Callable[[Any], Any], query: Any) -> tuple[float, float]:
    before = time.perf_counter(), time.thread_time()
    ask(query)
    return time.perf_counter() - before[0], time.thread_time() - before[1]


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
