"""What a report says of a run of finetune, while it trains and afterwards."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from pipeline.report.html.training_section import best_step, thinned, training_section
from tests.pipeline.report.run_folders import damage, fine_tuned
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_a_finished_run(tmp_path: Path) -> None:
    section = training_section(fine_tuned(tmp_path / "model", data=tmp_path / "augmented"))
    assert (section.name, section.state, section.best_step) == ("model", "finished", 2)
    curves = {curve.name: curve for curve in section.curves}
    assert list(curves) == ["loss", "held-out loss", "perplexity", "learning rate", "gradient norm"]
    assert curves["loss"].steps == (1, 2, 3, 4)
    assert curves["held-out loss"].values == (2.0, 1.7, 1.9)
    assert curves["gradient norm"].steps == (2, 3, 4), "null at step 1"
    facts = {fact.name: fact.value for fact in section.facts}
    assert facts["steps"] == "4 of 4"
    assert facts["best"] == "step 2, held-out perplexity 5.474, chosen by loss", "of an earlier version"
    assert len(section.losses) == 2  # one cut, and 12 of 20 texts not trained on


def test_a_run_that_trains(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented", steps=3, of=8, finished=False)
    section = training_section(folder)
    assert (section.state, section.best_step) == ("unfinished", 2)
    assert {fact.name: fact.value for fact in section.facts}["steps"] == "3 of 8"
    (folder / "metrics.jsonl").unlink()
    begun = training_section(folder)
    assert (begun.curves, begun.best_step, begun.losses) == ((), None, ())


def test_damaged_lines_are_counted_and_the_others_shown(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:2], '{"step": 2, "lo', "[3]", "7", *lines[3:], '{"step": 5']))
    section = training_section(folder)
    assert f"{metrics}: 3 of 9 lines are damaged and left out" in section.losses
    loss = next(curve for curve in section.curves if curve.name == "loss")
    assert loss.steps == (1, 3, 4)


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented", steps=0, finished=False)
    (folder / "metrics.jsonl").write_text('{"step": 0, "held_out_loss": 800.0, "perplexity": Infinity}\n')
    section = training_section(folder)
    assert [curve.name for curve in section.curves] == ["held-out loss"]
    assert section.best_step is None, "the model before training is no result"


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented")
    damage(folder / "manifest.json")
    with pytest.raises(ConfigurationError, match=r"manifest\.json was not written by this version"):
        training_section(folder)


def test_a_thinned_curve_keeps_its_ends_and_its_extremes() -> None:
    noise = random.Random(0)
    values = [(step, math.exp(-step / 9e3) + noise.random()) for step in range(30_000)]
    values[17_777] = (17_777, 99.0)
    values[22_222] = (22_222, -99.0)
    kept = thinned(values)
    assert len(kept) <= 2_000
    assert kept == sorted(kept)
    assert set(kept) <= set(values)
    assert {values[0], values[-1], values[17_777], values[22_222]} <= set(kept)
    assert thinned(values[:2_000]) == values[:2_000]


def test_the_first_of_equal_steps_is_the_best() -> None:
    values = {"held_out_loss": 1.0, "tokens": 3, "plain_loss": 2.0}
    events = [{"step": 9} | values, {"step": 5} | values, {"step": 7} | values | {"held_out_loss": 0.5}]
    assert (best_step(events, "perplexity"), best_step(events, "loss")) == (5, 7)
    assert best_step([{"step": 1, "loss": 1.0}], "loss") is None


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented", steps=4, of=8)
    manifest = folder / "manifest.json"
    values = json.loads(manifest.read_text()) | {"steps": 4}
    values["best"] |= {"plain_loss": 1.6, "plain_tokens": 5}
    manifest.write_text(json.dumps(values))
    facts = {fact.name: fact.value for fact in training_section(folder).facts}
    assert facts["steps"] == "stopped early at step 4 of 8"
    assert facts["best"] == "step 2, held-out perplexity 4.953, chosen by perplexity"
