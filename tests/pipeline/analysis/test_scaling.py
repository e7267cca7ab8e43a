"""Size against accuracy, and the number of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.analysis.result_table import DASH
from pipeline.analysis.scaling import parameters, scaling_table
from pipeline.evaluation.results import Evaluation
from tests.pipeline.analysis.results import model

pytestmark = pytest.mark.unit


def test_a_row_for_each_model_by_size() -> None:
    evaluation = Evaluation(
        models={
            "large": model("l", nq=0.4),
            "large-disabled": model("l", disabled=True, nq=0.3),
            "small": model("s", nq=0.2),
            "small-k0": model("s", k=0, nq=0.1),
            "baseline": model("b", disabled=True, nq=0.05),
            "moved": model("x", nq=0.5),
        }
    )
    sizes = {"l": 2_000, "s": 1_000, "b": 1_500, "x": None}
    table = scaling_table(evaluation, size_of=sizes.get)
    assert [(row.titles[0], *(cell.shown for cell in row.cells)) for row in table.rows] == [
        ("small", "1,000", "20.0", "10.0"),
        ("baseline", "1,500", DASH, "5.0"),
        ("large", "2,000", "40.0", "30.0"),
        ("moved", DASH, "50.0", DASH),
    ]
    assert table.columns == (("", "Parameters"), ("NQ", "with calls"), ("NQ", "without"))


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_come_from_the_configuration(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    config.save_pretrained(tmp_path)
    expected = sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    assert parameters(str(tmp_path)) == expected
    matrices = 1 if tied else 2
    assert expected == matrices * 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16


def test_a_model_that_is_gone_has_no_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert parameters(str(tmp_path / "gone")) is None
    assert parameters("runs/gone/model") is None
    assert "parameters are not counted" in caplog.text
