"""The corpus as a Ray Data source: blocks of texts, without those that are done, all of them counted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from bench.fixtures import small_run as annotating
from pipeline.annotation.isolation import FailureBudget
from pipeline.annotation.progress import start_progress
from pipeline.annotation.source import (
    TextSource,
    _WatchedFile,
    from_block,
    read_groups,
    share_read,
    to_block,
)
from pipeline.annotation.unselected import UnselectedRows
from pipeline.base.config import CorpusConfig, MethodConfig
from pipeline.base.records import TEXT_SCHEMA
from pipeline.corpus.files import CorpusFile, list_files
from pipeline.corpus.texts import read_corpus
from pipeline.storage.row_files import ROWS
from pipeline.syntax.tokenizer import TokenCounter

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_corpus(folder / "pages", files=3, pages=10)
    return folder


def test_texts_that_are_done_are_left_out_and_counted(ray_cluster: None, world: Path) -> None:
    config = CorpusConfig(paths=(str(world / "pages"),))
    files, count = list_files(config), TokenCounter(str(world / "model"))
    texts = list(read_corpus(files, config, count))
    done = texts[1:12] + texts[-3:]
    ids = np.sort(np.array([text.text_id for text in done]))
    groups = [[file] for file in files]
    progress = start_progress(len(groups), len(done), FailureBudget(1.0), "tests")
    source = TextSource(groups, config, count, ray.put(ids), progress)
    assert source.get_name() == "Texts"  # "ReadTexts" in Ray's dashboard
    tasks = source.get_read_tasks(1)
    assert len(tasks) == len(files)
    blocks = [block for task in tasks[:2] for block in task()]
    assert ray.get(progress.done_and_total.remote())[1] is None, "known only when every file has been read"
    blocks += tasks[2]()
    assert all(block.schema == TEXT_SCHEMA for block in blocks)
    assert from_block(pa.concat_tables(blocks)) == [text for text in texts if text not in done]
    assert ray.get(progress.done_and_total.remote()) == (len(done), len(texts))


def test_texts_that_no_tool_is_tried_on_have_rows_and_are_in_no_block(
    ray_cluster: None, world: Path, tmp_path: Path
) -> None:
    pages = [{"text": f"Page {n} tells of no sums."} for n in range(90)]
    pages[70] = {"text": "27 boys and 4 girls, that is 31 pupils."}
    (tmp_path / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)) + "\n{broken\n")
    (tmp_path / ROWS).mkdir()
    config = CorpusConfig(paths=(str(tmp_path / "pages.jsonl"),))
    files, count = list_files(config), TokenCounter(str(world / "model"))
    texts = list(read_corpus(files, config, count))
    progress = start_progress(1, 1, FailureBudget(1.0), "tests")
    unselected = UnselectedRows(MethodConfig(tools=("Calculator",)), tmp_path / ROWS, progress)
    done = ray.put(np.array([texts[3].text_id]))
    source = TextSource([files], config, count, done, progress, (), unselected)
    [block] = source.get_read_tasks(1)[0]()
    assert from_block(block) == [texts[70]]
    written = {row["text_id"] for row in pq.read_table(tmp_path / ROWS).to_pylist()}
    assert written == {text.text_id for text in texts} - {texts[3].text_id, texts[70].text_id}
    assert ray.get(progress.done_and_total.remote()) == (1 + len(written), len(texts))


def test_a_limit_is_one_read_task(world: Path) -> None:
    config = CorpusConfig(paths=(str(world / "pages"),), max_texts=4)
    files = list_files(config)
    assert read_groups(files, config) == [files]


def test_small_files_are_read_together_in_their_order() -> None:
    def file(number: int, size: int | None) -> CorpusFile:
        return CorpusFile(name=f"folder/{number}", path=f"/folder/{number}", root="", size=size)

    half = 2**19
    sizes = [10, half, half, 20, half - 20, 3 * half, None, 10, None, 10]
    files = [file(number, size) for number, size in enumerate(sizes)]
    groups = read_groups(files, CorpusConfig(paths=("folder",)))
    assert [file for group in groups for file in group] == files
    sizes_of_groups = [[file.size for file in group] for group in groups]
    assert sizes_of_groups == [[10, half], [half, 20, half - 20], [3 * half], [None], [10], [None], [10]]


def test_the_share_of_a_file_that_is_read(tmp_path: Path) -> None:
    """Two files, of 3 and 1 MiB; a Parquet file or one of unknown size would have no share."""
    line = json.dumps({"text": "x" * 1_000}) + "\n"
    for name, mib in (("0", 3), ("1", 1)):
        (tmp_path / f"{name}.jsonl").write_text(line * (mib * 2**20 // len(line)))
    config = CorpusConfig(paths=(str(tmp_path),))
    files = [_WatchedFile(**asdict(file)) for file in list_files(config)]
    assert share_read(files) is None
    found = {}
    texts = read_corpus(files, config, lambda text: len(text) // 4)
    for number, _ in enumerate(texts, start=1):
        found[number] = share_read(files)
    assert found[100] is None
    for number in (1_600, 2_500, 3_500):
        assert found[number] == pytest.approx(number / len(found), rel=0.1)
    assert found[len(found)] == 1.0
    unknown = _WatchedFile(name="a/b.jsonl", path="a/b.jsonl", root="", size=None)
    assert share_read([*files, unknown]) is None


def test_texts_survive_the_way_through_arrow(world: Path) -> None:
    config = CorpusConfig(paths=(str(world / "pages"),))
    texts = list(read_corpus(list_files(config), config, len))
    assert from_block(to_block(texts)) == texts
    assert {text.skipped is None for text in texts} == {True, False}
