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


def test_a_label_that_has_no_row_is_named(caplog: pytest.LogCaptureFixture) -> None:
    evaluation = Evaluation(models={"k10": model("m", nq=0.4), "k1": model("m", k=1, nq=0.3)})
    (row,) = scaling_table(evaluation, size_of=lambda path: 7).rows
    assert (row.titles[0], row.cells[1].shown) == ("k10", "40.0")
    assert "k1 is not in the table: it is the model of k10 with other settings" in caplog.text


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


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "t5"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}',
        "not json",
    ],
)
def test_a_configuration_of_no_usable_model_has_no_size(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(config)
    assert parameters(str(tmp_path)) is None
    assert "parameters are not counted" in caplog.text
