"""The paper's figures in paper.toml against the numbers of its tables, typed here a second time."""

from __future__ import annotations

import pytest

from pipeline.analysis.paper_figures import paper_figures
from pipeline.benchmarks.published import names
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit

# Tables 3, 4, 5 and 7, a line for each model; columns as in HEAD.
HEAD = [
    *("lama_squad", "lama_google_re", "lama_trex", "asdiv", "svamp", "mawps"),
    *("webquestions", "nq", "triviaqa", "templama", "dateset"),
]
SCORES = {
    "base": (17.8, 4.9, 31.9, 7.5, 5.2, 9.9, 18.5, 12.8, 43.9, 13.7, 3.9),
    "plain": (19.2, 5.6, 33.2, 9.6, 5.0, 9.3, 18.4, 12.2, 45.6, 12.9, 2.9),
    "disabled": (22.1, 6.3, 34.9, 14.8, 6.3, 15.0, 18.9, 12.6, 46.7, 12.7, 5.9),
    "toolformer": (33.8, 11.5, 53.5, 40.4, 29.4, 44.0, 26.3, 17.7, 48.8, 16.3, 27.3),
}
# Table 6, es de hi vi zh ar.
MLQA = {"base": (15.2, 16.5, 1.3, 8.2, 18.2, 8.2), "toolformer": (20.6, 13.5, 1.4, 10.6, 16.8, 3.7)}
# Table 8, WikiText and CCNet.
PERPLEXITY = {"base": (9.9, 10.6), "plain": (10.3, 10.5), "disabled": (10.3, 10.5), "toolformer": ()}
# Table 9: k, all, AC, NC, calls.
TREX = [
    (0, 34.9, None, None, 0),
    (1, 47.8, 53, 44.3, 40.3),
    (3, 52.9, 58, 29, 82.8),
    (10, 53.5, 54, 22.5, 98.1),
]
WEBQS = [(0, 18.9, 0), (1, 19.3, 8.5), (3, 26.3, 99.3), (10, 26.3, 100)]
# Table 2: tau_f 0.5, 1.0, 2.0.
EXAMPLES = {
    "QA": (51_987, 18_526, 5_135),
    "WikiSearch": (207_241, 60_974, 13_944),
    "Calculator": (3_680, 994, 138),
    "Calendar": (61_811, 20_587, 3_007),
    "MT": (3_156, 1_034, 229),
}


@pytest.mark.parametrize("row", SCORES)
def test_scores(row: str) -> None:
    figures = {
        name: value
        for table in paper_figures().table
        if table.name in ("lama", "math", "qa", "temporal")
        for name, value in table.of(row).items()
    }
    assert figures == dict(zip(HEAD, SCORES[row], strict=True))


def test_mlqa_and_perplexity() -> None:
    tables = {table.name: table for table in paper_figures().table}
    for row in SCORES:
        assert tuple(tables["mlqa"].of(row).values()) == MLQA.get(row, ())
        assert tuple(tables["perplexity"].of(row).values()) == PERPLEXITY[row]
    assert list(tables["mlqa"].columns) == [f"mlqa_{code}" for code in ("es", "de", "hi", "vi", "zh", "ar")]


def test_decoding() -> None:
    trex, questions = paper_figures().decoding
    assert [(s.k, s.all, s.with_call, s.without_call, s.calls) for s in trex.settings] == TREX
    assert [(s.k, s.all, s.calls) for s in questions.settings] == WEBQS


def test_examples() -> None:
    assert [figures.tau_f for figures in paper_figures().examples] == [0.5, 1.0, 2.0]
    found = {tool: tuple(f.tools[tool] for f in paper_figures().examples) for tool in EXAMPLES}
    assert found == EXAMPLES
    assert set(EXAMPLES) == set(PACKAGED)


def test_every_column_is_a_benchmark_that_evaluate_reads() -> None:
    columns = {name for table in paper_figures().table for name in table.columns}
    assert columns - {"held_out"} <= set(names())
    for table in paper_figures().table:
        assert all(set(table.of(row)) <= set(table.columns) for row in SCORES)
        assert f"Table {3 + paper_figures().table.index(table)}," in table.source
