"""docs/method.md: its code recomputes a row, and the functions and tests that its tables name exist."""

from __future__ import annotations

import importlib
import re
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

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "method.md"
PROMPT = "Add calls. [Calculator(1 + 2)]\n\nInput: {text}\nOutput:\n"


def code_block() -> str:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return str(code)


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two lines."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def resolve(dotted_name: str) -> object:
    """A module below `pipeline`, or a name inside one."""
    module, _, attribute = dotted_name.rpartition(".")
    try:
        return importlib.import_module(f"pipeline.{dotted_name}")
    except ModuleNotFoundError:
        return getattr(importlib.import_module(f"pipeline.{module}"), attribute)


def test_the_functions_of_the_table_exist() -> None:
    column = "\n".join(functions for _, functions, _ in rows_after("Formula, function, test"))
    names = re.findall(r"`([a-z_]+\.[A-Za-z_.]+)`", column)
    assert len(names) > 15
    for name in names:
        resolve(name)


@pytest.mark.parametrize(
    "heading", ["Formula, function, test", "Likely mistakes, and the test that detects each"]
)
def test_the_tests_of_the_table_exist(heading: str) -> None:
    cells = [cells[-1] for cells in rows_after(heading)]
    assert len(cells) > 10
    for entry in re.split(r"; |, (?=\S*/test_)", "; ".join(cells)):
        path, _, names = entry.strip().partition(": ")
        source = (TESTS / "pipeline" / f"{path}.py").read_text()
        for name in re.findall(r"`(.+?)`", names):
            assert re.search(name.replace("…", r"\w*") + r"\b", source), entry


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "pieces"), ("gptj", "split_marker"), ("gpt2", "bytes")]
)
def test_a_row_can_be_recomputed_from_the_page(architecture: str, kind: str, tmp_path: Path) -> None:
    model = language_model(architecture, kind)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "calculator.txt").write_text(PROMPT)
    text = Text(5, Document("a#1"), "48 café rolls on Monday and 67 on Tuesday, 115 in both days.")
    template = load_prompt("Calculator", tmp_path)
    calculator = ToolMethod(tau_s=0.0, k=4, m=3, max_call_tokens=12)
    method = MethodConfig(calculator=calculator, seed=3)
    [sampled] = sample_calls(model, [SamplingRequest(text, "Calculator")], {"Calculator": template}, method)
    executed = [ExecutedCall(candidate, "115", None) for candidate in sampled.candidates]
    [scored] = score_calls(model, [text], [executed], {"Calculator": -1e9})
    row = Annotation(text, "annotated", calls=scored.calls).to_row()
    assert row["calls"]
    for call in (row["calls"][0], row["calls"][-1]):
        variables = {"folder": tmp_path, "row": row, "call": call, "prompt": PROMPT}
        exec(code_block(), variables)  # noqa: S102 - the page's own code
        for name in ("p_api", "l_plus", "l_empty", "l_call"):
            assert float(variables[name].detach()) == pytest.approx(call[name], abs=1e-4), name
