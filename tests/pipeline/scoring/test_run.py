"""score on a real cluster: the same scores whatever is killed, and what is refused before anything runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fixtures import small_run
from bench.fixtures.small_models import TEXT
from pipeline.base.config import ActorPoolConfig, ModelConfig, ScoreConfig
from pipeline.engine.loading import load_language_model
from pipeline.method.insertions import Insertion, score_insertions
from pipeline.scoring.manifest import ScoreManifest
from pipeline.scoring.run import score
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, read_model

LINES = 2_500


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    small_run.save_model(folder / "model")
    random = np.random.default_rng(0)
    spaces = [index for index, character in enumerate(TEXT[:150]) if character == " "]
    lines = [
        json.dumps(
            {"id": n, "text": TEXT[:150], "position": int(random.choice(spaces)), "insertion": f" {n} +"}
        )
        for n in range(LINES)
    ]
    lines[7] = "{"
    (folder / "a.jsonl").write_text("\n".join(lines[:2_000]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[2_000:]).encode()))
    return folder


def config(world: Path, output: str, **changed: Any) -> ScoreConfig:
    return ScoreConfig(
        files=(str(world / "a.jsonl"), str(world / "b.jsonl.gz")),
        model=ModelConfig(path=str(world / "model"), dtype="float32", device="cpu"),
        ray=ActorPoolConfig(actors=2, gpus_per_actor=0),
        output=world / output,
    ).model_copy(update=changed)


def rows(output: Path) -> list[dict[str, Any]]:
    files = sorted((output / "scores").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_that_is_gone_on_with_gives_the_same_scores(ray_cluster: None, world: Path) -> None:
    whole = score(config(world, "whole"))
    assert (whole.state, whole.parts, whole.lines, whole.scored) == ("finished", 3, LINES, LINES - 1)
    assert list(whole.reasons.values()) == [1]
    assert score(config(world, "whole")) == whole  # finished before
    found = rows(world / "whole")
    assert [row.get("id", 7) for row in found] == list(range(LINES))
    model = load_language_model(config(world, "whole").model)
    some = [row for row in found[:60] if "id" in row]
    expected = score_insertions(model, [Insertion(r["text"], r["position"], r["insertion"]) for r in some])
    for row, one in zip(some, expected, strict=True):
        assert row["score"]["gain"] == pytest.approx(one.gain, abs=1e-4)

    # As a killed run leaves it: one part is missing, and one is not complete.
    (world / "whole").rename(world / "killed")
    parts = sorted((world / "killed" / "scores").glob("*.jsonl"))
    parts[0].unlink()
    parts[1].rename(parts[1].with_name(parts[1].name + ".part"))
    manifest = read_model(world / "killed" / MANIFEST, ScoreManifest)
    atomic_write(world / "killed" / MANIFEST, manifest.model_copy(update={"state": "unfinished"}).written())
    again = score(config(world, "killed"))
    assert (again.state, again.lines, again.scored) == ("finished", LINES, LINES - 1)
    assert rows(world / "killed") == found
    assert not list((world / "killed" / "scores").glob("*.part"))
    with pytest.raises(ConfigurationError, match="Different: tokens: 5 → 3"):
        score(config(world, "killed", tokens=3))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": ()}, "name files of JSON lines"),
        ({"files": ("nowhere.jsonl",)}, "nowhere.jsonl: no such file"),
        ({"files": ("text.txt",)}, "not a file of JSON lines"),
        ({"model": ModelConfig(path="nowhere/model")}, "model.path"),
        ({"output": Path("foreign")}, "is not empty and not a result of score"),
        ({"output": Path("file")}, "file"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "file").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigurationError) as error:
        score(config(world, "refused").model_copy(update=changed))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]


@pytest.mark.unit
def test_an_output_in_use_is_refused(world: Path) -> None:
    with exclusive_lock(world / "busy"), pytest.raises(ConfigurationError, match="is writing here"):
        score(config(world, "busy"))
