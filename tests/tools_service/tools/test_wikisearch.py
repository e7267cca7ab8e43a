"""WikiSearch: a snippet or a reason, whatever is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools_service.encyclopedia import indexed
from tools_service.contract.tool import ToolInput
from tools_service.retrieval.passages import Passage
from tools_service.retrieval.retriever import Retriever
from tools_service.tools.wikisearch import WikiSearch

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> WikiSearch:
    return WikiSearch(indexed(tmp_path_factory.mktemp("wiki")))


def test_the_best_passage_with_its_title(search: WikiSearch) -> None:
    answers = search([ToolInput(query) for query in ("spinning reels", "towers for ships", "écluse")])
    assert [(one.result or "").split(" > ")[0] for one in answers] == ["Spin fishing", "Lighthouse", "Écluse"]
    assert (
        answers[0].result
        == "Spin fishing > Spin fishing uses a fast and lightweight reel. It is popular on rivers."
    )


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "empty query"),
        (" \n ", "empty query"),
        ("\x00\x07\u200b", "no word to search for"),
        ("?!…", "no word to search for"),
        ("the of and", "nothing found"),
        ("zeppelin", "nothing found"),
        ("\ud800 zeppelin", "nothing found"),
        ("x" * 2**20, "query too long"),
        ("lighthouse " * 100, "query too long"),
    ],
)
def test_hostile_queries_have_reasons_and_cost_their_neighbours_nothing(
    search: WikiSearch, query: str, reason: str
) -> None:
    before, asked, after = search([ToolInput("lighthouse"), ToolInput(query), ToolInput("écluse")])
    assert (asked.result, asked.reason) == (None, reason)
    assert (before.result or "").startswith("Lighthouse")
    assert (after.result or "").startswith("Écluse")


def test_no_queries_no_answers(search: WikiSearch) -> None:
    assert search([]) == []


def test_the_retriever_gives_ranked_passages(tmp_path: Path) -> None:
    retriever = Retriever(indexed(tmp_path))
    reels, ships = retriever.search(["reel fishing rod", "ships"], 5)
    assert [retriever.passage(hit.passage).title for hit in reels] == ["Fly fishing", "Spin fishing"]
    assert retriever.passage(ships[0].passage) == Passage(
        "Lighthouse", "A lighthouse is a tower that emits light and serves as a beacon for ships."
    )
