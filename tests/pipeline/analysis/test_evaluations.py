"""Several files of results as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.analysis.evaluations import read_evaluations
from pipeline.evaluation.results import Evaluation, EvaluationError, ModelResult
from tests.pipeline.analysis.results import model, running_text

pytestmark = pytest.mark.unit


def stored(path: Path, **models: ModelResult) -> Path:
    path.write_text(Evaluation(models=models).model_dump_json())
    return path


def test_labels_and_benchmarks_of_all_files(tmp_path: Path) -> None:
    texts = model(nq=0.3, perplexity=4).model_copy(update={"running_texts": {"wikitext": running_text(9)}})
    one = stored(tmp_path / "1.json", base=model(nq=0.1), toolformer=model(svamp=0.2))
    two = stored(tmp_path / "2.json", toolformer=texts)
    found = read_evaluations([one, two]).models
    assert list(found) == ["base", "toolformer"]
    assert {name: r.accuracy for name, r in found["toolformer"].benchmarks.items()} == {
        "svamp": 0.2,
        "nq": 0.3,
    }
    assert (found["toolformer"].perplexity, list(found["toolformer"].running_texts)) == (4, ["wikitext"])


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (model(nq=0.5), "with nq in both"),
        (model("another", svamp=0.5), "with another model or other settings"),
        (model(k=1, svamp=0.5), "with another model or other settings"),
        (
            model(svamp=0.5).model_copy(update={"tools_off": ("QA",)}),
            "with another model or other settings",
        ),
    ],
)
def test_a_label_with_two_meanings_is_refused(tmp_path: Path, other: ModelResult, problem: str) -> None:
    one, two = stored(tmp_path / "1.json", base=model(nq=0.1)), stored(tmp_path / "2.json", base=other)
    with pytest.raises(EvaluationError, match=problem) as caught:
        read_evaluations([one, two])
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_files_without_results(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone\.json: no such file"):
        read_evaluations([tmp_path / "gone.json"])
    whole, empty = stored(tmp_path / "1.json", base=model(nq=0.1)), stored(tmp_path / "empty.json")
    with pytest.raises(EvaluationError, match=r"empty\.json: no results; run evaluate first"):
        read_evaluations([whole, empty])
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(EvaluationError, match=r"other\.json: not a result of evaluate"):
        read_evaluations([tmp_path / "other.json"])
