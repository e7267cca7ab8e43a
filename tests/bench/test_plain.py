"""The plain procedure and the engine score the same calls: each checks the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.annotate import same_calls
from bench.fixtures import small_run as annotating
from bench.fixtures.small_run import annotator_model, texts
from bench.plain import Plain
from bench.systems import EachAlone, PromptAfresh, patient
from pipeline.base.config import MethodConfig
from pipeline.base.records import Call
from pipeline.method.annotator import Annotator
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    """L(e(c)) is scored everywhere, as the plain procedure does."""
    made = annotating.method(annotating.write_prompts(tmp_path / "prompts"))
    low = made.calculator.model_copy(update={"tau_f": -1e9})
    return made.model_copy(update={"calculator": low, "calendar": low})


@pytest.fixture
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))


def engine(annotator: Annotator) -> list[list[Call]]:
    return [list(one.calls) for one in annotator.annotate(texts(4))]


def test_the_plain_procedure_scores_the_calls_that_the_engine_scores(
    method: MethodConfig, tools: LocalTools
) -> None:
    plain = Plain(annotator_model(), tools, method)
    found = same_calls(engine(Annotator(annotator_model(), tools, method)), plain.annotate(texts(4)), 0.0)
    assert found["scored"] == [found["scored_by_both"]] * 2
    assert found["scored_by_both"] >= 6
    assert 0 < found["kept_by_both"] < found["scored_by_both"]
    assert found["same_kept"]
    assert found["largest_difference_of_a_loss"] < 1e-4
    assert plain.usage["decode"].tokens > plain.usage["positions"].tokens > 0


def test_shortcuts_switched_off_change_no_call(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    whole = engine(Annotator(model, tools, method))
    for less in (PromptAfresh, EachAlone):
        found = same_calls(whole, engine(less(model, tools, method)), 0.0)
        assert found["scored"] == [found["scored_by_both"]] * 2
        assert found["largest_difference_of_a_loss"] < 1e-4
    table = patient(model)
    assert table.shape == (1, model.vocabulary_size)
    assert set(table[0, list(model.call_tokens.api)]) == {0}
