"""reasons.py: every reason that the code gives is explained, and every explanation belongs to one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pipeline.base.records import POSITION_NOT_SCORABLE
from pipeline.report.reasons import NOT_SCORED, REASONS, Explanation, ReasonStage, explain
from tests.test_method_page import (
    reasons_in,
    reasons_of_draws,
    reasons_of_selection,
    reasons_of_tools,
)
from tools_service.contract import functions, parameters, values
from tools_service.remote import mcp
from tools_service.remote.stdio import ANSWER_TOO_LONG

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
READERS = (
    "pipeline/corpus/documents.py",
    "pipeline/corpus/parquet_rows.py",
    "pipeline/corpus/passages.py",
    "pipeline/corpus/texts.py",
    "tools_service/base/files.py",
    "tools_service/base/json_lines.py",
    "tools_service/base/lines.py",
)


def beginnings(path: str) -> Iterator[str]:
    """What stands before the first value in each string of a module, docstrings left out."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if node in docstrings:
            continue
        if isinstance(node, ast.JoinedStr):
            node = node.values[0]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def reasons_for_skipping() -> set[str]:
    found = (re.match(r"([A-Za-z][\w -]*): ", text) for path in READERS for text in beginnings(path))
    return {match.group(1) for match in found if match}


def test_the_reasons_of_skipped_texts_are_those_of_the_code_and_of_the_page() -> None:
    page = (ROOT / "docs" / "corpus.md").read_text().split("| kind | cause |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([^`]+)`", page, re.M)) == set(REASONS["skipped"])
    assert reasons_for_skipping() == set(REASONS["skipped"])


def reasons_of_declared_tools() -> set[str]:
    """Those that do not come from the function or server itself; most name a parameter after a colon."""
    modules = ("arguments", "functions", "parameters", "values")
    found = (reasons_in(f"tools_service/contract/{name}.py", "reason", "RefusedError") for name in modules)
    kinds = {*parameters._KINDS.values(), *(kind for _, kind in values._KINDS)}
    constants = {functions.NO_RESULT, functions.WRONG_INPUT, functions.NOT_FINITE}
    constants |= {mcp.TOOL_ERROR, mcp.NOT_TEXT, ANSWER_TOO_LONG}
    return set().union(*found) | kinds | constants


def test_every_reason_of_the_method_is_in_the_table_and_no_other() -> None:
    assert reasons_of_selection() == set(REASONS["not selected"])
    assert reasons_of_draws() == set(REASONS["discarded draw"])
    not_scored = reasons_in("pipeline/method/filtering.py", "_discard") | {POSITION_NOT_SCORABLE}
    assert not_scored == set(REASONS["not scored"]) == NOT_SCORED


def test_every_reason_of_the_tools_is_in_the_table_and_no_other() -> None:
    assert reasons_of_tools() | reasons_of_declared_tools() == set(REASONS["no result"])


def test_a_text_whose_annotators_died_has_its_reason_in_the_table() -> None:
    heads = set(beginnings("pipeline/annotation/annotator_actor.py"))
    assert any(head.startswith("process died: ") for head in heads)
    assert "process died" in REASONS["failed"]


@pytest.mark.parametrize("stage", get_args(ReasonStage))
def test_explanations_are_sentences_and_advice_is_a_clause(stage: ReasonStage) -> None:
    for reason in [*REASONS[stage], "never heard of"]:
        explanation = explain(stage, reason, "Units")
        assert re.fullmatch(r"[A-Z].*\.", explanation.meaning), reason
        assert not explanation.advice.endswith("."), reason
        assert "{" not in explanation.advice, reason


def test_details_after_the_kind_do_not_matter() -> None:
    expected = REASONS["skipped"]["short passage"]
    assert explain("skipped", "short passage: fewer than 20 characters at a.jsonl#3") == expected
    assert explain("no result", "tool error: HTTP 500").meaning == REASONS["no result"]["tool error"].meaning


def test_options_name_the_tool() -> None:
    assert "--method.units.given-name" in explain("discarded draw", "wrong_tool", "Units").advice


def test_a_reason_of_a_declared_tool_gets_a_general_sentence() -> None:
    assert explain("no result", "the price is secret") == Explanation(
        "The tool gave this reason for having no result."
    )
