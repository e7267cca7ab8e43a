"""The number of texts: exact where everything is read, close where a part of large files is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.config import CorpusConfig
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.planning.corpus_sample import CorpusSample, sample_corpus

pytestmark = pytest.mark.unit


def words(text: str) -> int:
    return len(text.split())


def sampled(folder: Path, size: int) -> tuple[CorpusSample, int]:
    """The sample, and how many texts there really are."""
    config = CorpusConfig(paths=(str(folder),), max_tokens=64)
    files = list_files(config)
    sample, texts = sample_corpus(files, config, words, size)
    real = sum(1 for _ in read_corpus(files, config, words))
    assert len(texts) == min(size, real)
    return sample, real


def page(chance: random.Random) -> str:
    return " ".join(chance.choice(("river", "bread", "seven", "blue")) for _ in range(chance.randint(4, 90)))


def test_a_small_corpus_is_read_completely_and_counted(tmp_path: Path) -> None:
    for number in range(3):
        lines = [json.dumps({"text": page(random.Random(line))}) for line in range(20)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    sample, real = sampled(tmp_path, 7)
    assert sample.texts == sample.texts_read == real
    assert sample.bytes_read == sample.bytes
    assert sample.files_read == 3


@pytest.mark.parametrize("kind", ["gz", "parquet", "txt"])
def test_the_first_part_of_large_files_gives_an_estimate(kind: str, tmp_path: Path) -> None:
    """Pages that hardly compress, so that each file has several MiB."""
    for number in range(2):
        chance = random.Random(number)
        pages = [f"{chance.getrandbits(4_000):x} " + page(chance) for _ in range(3_000)]
        if kind == "gz":
            lines = "".join(json.dumps({"text": page_text}) + "\n" for page_text in pages)
            (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))
        elif kind == "txt":
            (tmp_path / f"{number}.txt").write_text("\n\n".join(pages))
        else:
            pq.write_table(pa.table({"text": pages}), tmp_path / f"{number}.parquet")
    sample, real = sampled(tmp_path, 200)
    assert sample.texts_read < 0.95 * real
    assert sample.texts == pytest.approx(real, rel=0.1)


def test_a_damaged_parquet_file_is_a_text_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    sample, real = sampled(tmp_path, 5)
    assert sample.texts == real == 1


def test_of_many_files_eight_from_all_over_the_list_are_read(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jsonl").write_text(
            json.dumps({"text": "a page of some length, twice"}) + "\n"
        )
    sample, real = sampled(tmp_path, 4)
    assert sample.files_read == 8
    assert sample.texts == real == 40


def test_a_sample_of_empty_files_gives_an_estimate(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jsonl").write_text('{"text": "a page"}\n' if number % 5 else "")
    sample, _ = sampled(tmp_path, 4)
    assert sample.texts == sample.texts_read * 5
