"""The benchmark of the corpus: its files, its counts, its arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.corpus.__main__ import actors_table, middle, run_datatrove, text_field
from bench.corpus.made_files import write_files
from bench.corpus.stages import Stages, run_stages
from pipeline.base.config import CorpusConfig, MethodConfig
from pipeline.corpus.documents import read_records
from pipeline.corpus.files import list_files

pytestmark = pytest.mark.unit


def test_a_seed_gives_the_same_files_of_four_shapes(tmp_path: Path) -> None:
    files = write_files(tmp_path / "a", 0, 40_000)
    assert [file.read_bytes() for file in files] == [
        file.read_bytes() for file in write_files(tmp_path / "b", 0, 40_000)
    ]
    config = CorpusConfig(paths=tuple(map(str, files)))
    listed = list_files(config)
    assert [text_field(file) for file in listed] == ["raw_content", "text", "text", "text"]
    for file in listed:
        records = list(read_records(file, config))
        assert all(record.problem is None and record.document.url for record in records)
        assert sum(len(record.text) for record in records) >= 10_000


def test_every_step_is_timed_on_what_the_step_before_it_gave(tmp_path: Path) -> None:
    files = write_files(tmp_path, 0, 20_000)
    config, method = CorpusConfig(paths=tuple(map(str, files)), max_tokens=200), MethodConfig()
    stages = run_stages(list_files(config), config, method, "demo/models/annotator")
    assert list(stages.seconds) == [
        *("reading", "parsing", "splitting", "blocks"),
        *(f"select {tool}" for tool in method.tools),
        "tokenizing",
    ]
    assert stages.characters >= 20_000
    assert stages.texts > stages.documents >= 4
    assert set(stages.selected) == set(method.tools)
    assert all(0 <= selected <= stages.texts for selected in stages.selected.values())


def test_the_cores_of_an_actor_grow_with_the_texts_that_it_is_not_given() -> None:
    seconds = {"reading": 1.0, "parsing": 0.0, "splitting": 2.0, "blocks": 1.0, "select Sum": 2.0}
    stages = Stages(seconds | {"tokenizing": 3.0}, 10, 10, 1_000, {"Sum": 250}, 8.0)
    table = actors_table(stages, [100.0], [])
    # 100 texts/s of every fourth text: 400 texts/s of 4 + 2 ms; 100 of 2 + 3 ms in the actor.
    assert "Sum: 25.0%; 2.40 + 0.50" in table
    assert "all, every text selected: 100%; 0.40 + 0.50" in table


def test_medians_are_taken_step_by_step() -> None:
    passes = [Stages({"reading": s, "parsing": 4.0 - s}, 1, 1, 1, {}, 2 * s) for s in (1.0, 3.0, 2.0)]
    assert middle(passes) == Stages({"reading": 2.0, "parsing": 2.0}, 1, 1, 1, {}, 4.0)


def test_an_interpreter_without_datatrove_ends_with_its_message(tmp_path: Path) -> None:
    files = list_files(CorpusConfig(paths=(str(write_files(tmp_path, 0, 4_000)[2]),)))
    with pytest.raises(SystemExit, match=r"--datatrove-python .*(?s:.)*No module named 'datatrove'"):
        run_datatrove(sys.executable, files, None)
    with pytest.raises(SystemExit, match="--datatrove-python /nowhere: "):
        run_datatrove("/nowhere", files, None)
