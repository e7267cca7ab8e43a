"""How many texts a run expects."""

from __future__ import annotations

import logging
import warnings

import pytest

from pipeline.annotation.isolation import FailureBudget
from pipeline.annotation.progress import ProgressActor
from pipeline.annotation.run import _silence_ray
from pipeline.storage.expected_texts import ExpectedTexts

pytestmark = pytest.mark.unit


def test_unread_files_are_expected_to_be_like_those_that_are_read() -> None:
    progress = ProgressActor(4, 0, FailureBudget(1.0), "a test")
    assert progress.expected() is None
    progress.read("a", 10)
    progress.read("b", 30)
    progress.read("b", 30)  # a repeated task
    assert progress.expected() == ExpectedTexts(texts=80, is_estimate=True)
    progress.read("c", 5)
    progress.read("d", 0)
    assert progress.expected() == ExpectedTexts(texts=45, is_estimate=False)
    assert progress.done_and_total() == (0, 45)


def test_rays_advice_on_small_corpora_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray.data", "ray.serve"):
        for handler in logging.getLogger(name).handlers:  # pytest's own are among them
            monkeypatch.setattr(handler, "level", handler.level)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        _silence_ray()
        warnings.warn("The minimum number of concurrent actors for 'MapBatches' is set to 2", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]
