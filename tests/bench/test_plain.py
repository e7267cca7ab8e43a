"""The plain procedure and the engine score the same calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.comparison import compare_calls
from bench.fixtures import small_run
from bench.fixtures.small_run import annotator_model, texts
from bench.plain import PlainAnnotator
from bench.systems import UncachedPrompt, UnsharedScoring, bracket_only_automaton
from pipeline.base.config import MethodConfig
from pipeline.base.records import Call
from pipeline.method.annotator import Annotator
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    """With thresholds so low that L(e(c)) is always scored, as in the plain procedure."""
    settings = small_run.method(small_run.write_prompts(tmp_path / "prompts"))
    low = settings.calculator.model_copy(update={"tau_f": -1e9})
    calendar = settings.of("Calendar").model_copy(update={"tau_f": -1e9})
    return settings.model_copy(update={"calculator": low, "calendar": calendar})


@pytest.fixture
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))


def calls_of(annotator: Annotator) -> list[list[Call]]:
    return [list(annotation.calls) for annotation in annotator.annotate(texts(4))]


def test_the_plain_procedure_scores_the_calls_that_the_engine_scores(
    method: MethodConfig, tools: LocalTools
) -> None:
    plain = PlainAnnotator(annotator_model(), tools, method)
    engine = calls_of(Annotator(annotator_model(), tools, method))
    same = compare_calls(engine, plain.annotate(texts(4)), 0.0)
    assert same["scored"] == [same["scored_by_both"]] * 2
    assert same["scored_by_both"] >= 6
    assert 0 < same["kept_by_both"] < same["scored_by_both"]
    assert same["same_kept"]
    assert same["max_loss_difference"] < 1e-4
    assert plain.usage["decode"].tokens > plain.usage["positions"].tokens > 0


def test_shortcuts_switched_off_change_no_call(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    engine = calls_of(Annotator(model, tools, method))
    for without_shortcut in (UncachedPrompt, UnsharedScoring):
        same = compare_calls(engine, calls_of(without_shortcut(model, tools, method)), 0.0)
        assert same["scored"] == [same["scored_by_both"]] * 2
        assert same["max_loss_difference"] < 1e-4
    table = bracket_only_automaton(model)
    assert table.shape == (1, model.vocabulary_size)
    assert set(table[0, list(model.call_tokens.api)]) == {0}
