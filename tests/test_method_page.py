"""docs/method.md promises that its few lines of transformers recompute a row; here they do. What its table
names is there."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

from bench.fixtures.small_models import language_model
from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.records import Annotation, Document, Text
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import score_calls
from pipeline.method.sampling import SamplingRequest, sample_calls
from pipeline.syntax.prompts import load_prompt

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[1] / "docs" / "method.md"
PROMPT = "Add calls. [Calculator(1 + 2)]\n\nInput: {text}\nOutput:\n"


def recipe() -> str:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return str(code)


def test_the_functions_of_the_table_are_there() -> None:
    table = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (§|the recomp)", line)]
    named = re.findall(r"`([a-z_]+)\.([A-Za-z_.]+)`", "\n".join(table))
    assert len(named) > 15
    for module, name in named:
        reduce(getattr, name.split("."), importlib.import_module(f"pipeline.{module}"))


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "pieces"), ("gptj", "split_marker"), ("gpt2", "bytes")]
)
def test_a_row_can_be_recomputed_from_the_page(architecture: str, kind: str, tmp_path: Path) -> None:
    model = language_model(architecture, kind)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "calculator.txt").write_text(PROMPT)
    text = Text(5, Document("a#1"), "48 café rolls on Monday and 67 on Tuesday, 115 in both days.")
    template, method = (
        load_prompt("Calculator", tmp_path),
        ToolMethod(tau_s=0.0, k=4, m=3, max_call_tokens=12),
    )
    wanted = MethodConfig(calculator=method, seed=3)
    [sampled] = sample_calls(model, [SamplingRequest(text, "Calculator")], {"Calculator": template}, wanted)
    executed = [ExecutedCall(candidate, "115", None) for candidate in sampled.candidates]
    [scored] = score_calls(model, [text], [executed], {"Calculator": -1e9})
    row = Annotation(text, "annotated", calls=scored.calls).to_row()
    assert row["calls"]
    for call in (row["calls"][0], row["calls"][-1]):
        found = {"folder": tmp_path, "row": row, "call": call, "prompt": PROMPT}
        exec(recipe(), found)  # noqa: S102 - the page's own code
        for name in ("p_api", "l_plus", "l_empty", "l_call"):
            assert float(found[name].detach()) == pytest.approx(call[name], abs=1e-4), name
