"""The sums of trials, against the counts of annotate's manifest and against numbers worked by hand."""

from __future__ import annotations

import pytest

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Document, Text
from pipeline.method.selection import Selection
from pipeline.storage.counts import count_rows
from pipeline.trying.scan import Scan
from pipeline.trying.summary import Summary
from pipeline.trying.trial import Trial

pytestmark = pytest.mark.unit


def summary(trials: list[Trial], method: MethodConfig) -> Summary:
    scan = Scan([(trial.annotation.text, trial.selection) for trial in trials], 9, {"no URL": 3})
    return Summary.of(trials, scan, method.of("Calculator"))


def test_the_stages_have_the_counts_of_a_manifest(trials: list[Trial], method: MethodConfig) -> None:
    found = summary(trials, method)
    counts = count_rows([trial.annotation.to_row() for trial in trials], method).tools["Calculator"]
    assert (found.selected.entered, found.selected.left, found.selected.lost) == (9, 6, {"no URL": 3})
    assert found.located.left == 6
    assert found.well_formed.entered == counts.draws
    assert found.answered.entered == counts.candidates
    assert (found.answered.left, found.scored.left) == (counts.executed, counts.scored)
    assert (found.kept.left, found.texts_kept.left) == (counts.kept, counts.texts_kept)
    assert found.well_formed.lost | found.answered.lost | found.scored.lost == counts.discarded
    assert all(sum(stage.lost.values()) == stage.entered - stage.left for stage in found.stages)


def test_gains_and_other_thresholds(trials: list[Trial], method: MethodConfig) -> None:
    found = summary(trials, method)
    gains = sorted(call.gain for trial in trials for call in trial.annotation.calls)
    quantiles = found.gain_quantiles()
    assert (quantiles[0.0], quantiles[1.0]) == (gains[0], gains[-1])
    at = found.texts_kept_at([-100.0, gains[-1]])
    assert at == {-100.0: len(found.best_gains), -0.5: found.texts_kept.left, gains[-1]: 1}
    assert found.texts_located_at([1.0]) == {0.0: 6, 1.0: 0}


def test_texts_that_failed_count_as_failed_alone(method: MethodConfig) -> None:
    text = Text(1, Document("a#1"), "A text.")
    trial = Trial(Selection("every text", True), Annotation(text, "failed", "OSError: gone"))
    found = summary([trial], method)
    assert (found.texts, found.failed, found.located.entered) == (1, {"OSError: gone": 1}, 0)
    assert found.gain_quantiles() == {}
