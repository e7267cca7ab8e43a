"""The shop's world: its held-out roses, its tools file, its server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.own_tool import shop
from bench.own_tool.__main__ import declare, require_held_out
from pipeline.cli.main import parse
from tools_service.contract.tool import ToolInput
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


def test_no_page_and_no_example_names_a_rose_of_the_questions(tmp_path: Path) -> None:
    shop.write(tmp_path)
    require_held_out(tmp_path)
    questions = [json.loads(line) for line in (tmp_path / "roses.jsonl").read_text().splitlines()]
    prices = json.loads((tmp_path / "prices.json").read_text())
    asked = [name for name in prices if any(f"rose {name}" in one["prompt"] for one in questions)]
    assert len(questions) == len(asked) == shop.ROSES_ASKED
    with (tmp_path / "pages.jsonl").open("a") as pages:
        pages.write(json.dumps({"text": f"The rose {asked[3]} costs 5 coins."}))
    with pytest.raises(AssertionError, match=f"pages.jsonl names {asked[3]}"):
        require_held_out(tmp_path)


def test_the_declared_tool_answers_from_the_price_list(tmp_path: Path) -> None:
    shop.write(tmp_path)
    file = declare(tmp_path)
    config = parse("annotate", ["--recipe", "demo", "--tools-file", str(file), "--tools", shop.TOOL]).config
    assert config.method.of(shop.TOOL).given_name
    name, price = next(iter(shop.price_list().items()))
    tools = LocalTools.start(config.tools, [shop.TOOL])
    answers = tools.call(shop.TOOL, [ToolInput(name), ToolInput("Nobody")])
    assert answers[0].result == f"{name} costs {price} coins."
    assert "not on the list" in (answers[1].reason or "")
