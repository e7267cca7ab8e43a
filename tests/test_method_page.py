"""docs/method.md: its code recomputes a row, and the functions and tests that its tables name exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from bench.fixtures import small_run
from bench.fixtures.small_models import TAUGHT, byte_level, causal_lm, language_model, teach
from pipeline.augmentation.merge import augment, merge
from pipeline.base.config import CorpusConfig, MergeConfig, MethodConfig
from pipeline.base.records import POSITION_NOT_SCORABLE, Document, Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.method.annotator import Annotator
from pipeline.method.merging import choose
from pipeline.method.numeracy import announces_result, find_numbers
from pipeline.method.selection import select
from pipeline.storage.row_files import read_rows
from pipeline.syntax.tokenizer import TokenCounter, special_ids, tokenize_continuations
from tools_service.config import ToolsConfig
from tools_service.contract.declarations import PACKAGED, stream_number
from tools_service.contract.spec import ToolMethod
from tools_service.contract.tool import EMPTY_RESULT, TRANSIENT
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "method.md"
TOOLS: tuple[str, ...] = ("Calculator", "Calendar")


@cache
def compiled(heading: str) -> CodeType:
    """The block of code below a heading of the page."""
    section = PAGE.read_text().split(f"### {heading}\n")[1]
    return compile(section.split("```python\n")[1].split("```")[0], f"{PAGE.name}: {heading}", "exec")


def reasons(funnel: dict[str, Any]) -> list[tuple[str, int]]:
    return [(item["reason"], item["count"]) for item in funnel["discarded"]]


def run_block(heading: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Run the block; it reads `variables` and adds to them."""
    exec(compiled(heading), variables)  # noqa: S102 - the page's own code
    return variables


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two lines."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def resolve(dotted_name: str) -> object:
    """A module below `pipeline` or in `tools_service`, or a name inside one."""
    whole_name = dotted_name if dotted_name.startswith("tools_service.") else f"pipeline.{dotted_name}"
    module, _, attribute = whole_name.rpartition(".")
    try:
        return importlib.import_module(whole_name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


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
        folder = TESTS if path.startswith("tools_service/") else TESTS / "pipeline"
        source = (folder / f"{path}.py").read_text()
        for name in re.findall(r"`(.+?)`", names):
            assert re.search(name.replace("…", r"\w*") + r"\b", source), entry


@cache
def model_of(architecture: str, kind: str) -> LanguageModel:
    """A small model that writes calls; `trimmed` has a tokenizer that trims offsets, as GPT-NeoX's does."""
    if kind != "trimmed":
        return language_model(architecture, kind)
    words = byte_level([" [", ")]", " ->"], trim_offsets=True)
    words.add_tokens([AddedToken("<file_sep>", special=True)])  # not in all_special_ids
    model = causal_lm(architecture, len(words) + 3)
    teach(model, tokenize_continuations(words, [" " + TAUGHT])[0].ids.tolist())
    return prepare_language_model(model, words)


MODELS = [("llama", "pieces"), ("gptj", "split_marker"), ("gpt2", "bytes"), ("gpt_neox", "trimmed")]
SETTINGS = ToolMethod(tau_s=0.0, k=3, m=4, tau_f=-1e9, max_call_tokens=12)
PAGES = [
    "48 café rolls on Monday and 67 on Tuesday, 115 in both days.",
    "Sold  2 rolls and\n3  naïve ones, 5 in all.\n“Quotes”, 日本 and [brackets] too: 2 + 3 = 5",
]


def annotated_rows(
    model: LanguageModel, folder: Path, settings: ToolMethod = SETTINGS
) -> list[dict[str, Any]]:
    """The rows of a run over a corpus file of PAGES, whose model and prompts are in `folder` then."""
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    small_run.write_prompts(folder / "prompts")
    pages = [{"text": text, "url": f"https://example.org/2019/03/0{1 + n}/"} for n, text in enumerate(PAGES)]
    (folder / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    corpus = CorpusConfig(paths=(str(folder / "pages.jsonl"),))
    texts = list(read_corpus(list_files(corpus), corpus, TokenCounter(str(folder))))
    method = MethodConfig(
        tools=TOOLS, calculator=settings, calendar=settings, prompts=folder / "prompts", seed=-3
    )
    tools = LocalTools.start(ToolsConfig(), TOOLS)
    return [annotation.to_row() for annotation in Annotator(model, tools, method).annotate(texts)]


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_a_run_can_be_recomputed_from_the_page(architecture: str, kind: str, tmp_path: Path) -> None:
    calls = candidates = 0
    for row in annotated_rows(model_of(architecture, kind), tmp_path):
        for funnel in row["funnel"]:
            tool, of_tool = funnel["tool"], [c for c in row["calls"] if c["tool"] == funnel["tool"]]
            prompt = (tmp_path / "prompts" / f"{tool.lower()}.txt").read_text()
            page = {"folder": tmp_path, "row": row, "prompt": prompt, "tool": tool, "seed": -3}
            page |= {"tau_s": 0.0, "k": SETTINGS.k, "m": SETTINGS.m, "max_call_tokens": 12}
            for call in of_tool or [{"tool": tool, "position": 0, "input": "", "result": ""}]:
                page["call"] = call
                run_block("Tokens and losses", page)
                for name in ("p_api", "l_plus", "l_empty", "l_call") if of_tool else ():
                    assert page[name] == pytest.approx(call[name], abs=1e-4), name
            assert page["special_ids"] == set(special_ids(model_of(architecture, kind).tokenizer))
            run_block("Random numbers", page)
            run_block("Positions and draws", page)
            assert len(page["positions"]) == funnel["positions"]
            assert len(page["draws"]) == funnel["draws"]
            assert len(page["candidates"]) == funnel["candidates"]
            assert {(c["position"], c["input"]) for c in of_tool} <= page["candidates"]
            discarded = Counter(page["discarded"])
            discarded[POSITION_NOT_SCORABLE] = page["positions_not_scorable"]
            of_draws = Counter({r: n for r, n in reasons(funnel) if not r.startswith("tool: ")})
            assert +discarded == of_draws
            calls, candidates = calls + len(of_tool), candidates + funnel["candidates"]
    assert candidates >= calls > 0


def test_draws_given_the_name_can_be_recomputed_from_the_page(tmp_path: Path) -> None:
    settings, tool, calls = SETTINGS.model_copy(update={"given_name": True}), "Calculator", 0
    prompt = small_run.PROMPTS["calculator"]
    for row in annotated_rows(model_of("llama", "pieces"), tmp_path, settings):
        [funnel] = [funnel for funnel in row["funnel"] if funnel["tool"] == tool]
        of_tool = [call for call in row["calls"] if call["tool"] == tool]
        page = {"folder": tmp_path, "row": row, "prompt": prompt, "tool": tool, "seed": -3}
        page |= {"tau_s": 0.0, "k": SETTINGS.k, "m": SETTINGS.m, "max_call_tokens": 12}
        page["call"] = of_tool[0] if of_tool else {"tool": tool, "position": 0, "input": "", "result": ""}
        for heading in ("Tokens and losses", "Random numbers", "Positions and draws"):
            run_block(heading, page)
        run_block("Draws given the tool's name", page)
        assert len(page["candidates"]) == funnel["candidates"]
        discarded = {r: n for r, n in reasons(funnel) if not r.startswith(("tool: ", "position_"))}
        assert Counter(page["discarded"]) == discarded
        p_name = {page["offsets"][i]: p for i, p in page["p_name"].items()}
        for call in of_tool:
            assert call["p_name"] == pytest.approx(p_name[call["position"]], rel=2e-3)
        calls += len(of_tool)
    assert calls


def test_the_trimming_tokenizer_does_trim_and_has_an_unlisted_special_token() -> None:
    words = model_of("gpt_neox", "trimmed").tokenizer
    assert set(special_ids(words)) - set(words.all_special_ids)
    spans = words("a 48", add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert spans[1][0] == 2


@given(
    seed=st.integers(-(2**63), 2**63),
    text_id=st.integers(0, 2**63 - 1),
    tool=st.integers(0, 4),
    position=st.integers(0, 4096),
)
def test_the_random_numbers_of_the_page_are_those_of_the_draws(
    seed: int, text_id: int, tool: int, position: int
) -> None:
    page = run_block("Random numbers", {})
    keys = stream_keys(seed, text_id, tool, position, 3)
    for t in (0, 1, 59):
        of_page = [page["uniform"](seed, text_id, tool, position, j, t) for j in range(3)]
        assert uniforms(keys, t).tolist() == of_page


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 pages in annotations/, made without Ray."""
    folder = tmp_path_factory.mktemp("world")
    small_run.save_model(folder / "model")
    small_run.write_prompts(folder / "prompts")
    small_run.write_corpus(folder / "pages", 2, 15)
    small_run.finished(folder, folder / "annotations")
    return folder


def test_text_ids_are_those_of_the_page(world: Path, tmp_path: Path) -> None:
    page = run_block("Text ids and the random share", {})
    long = " ".join(f"Sentence {n} has some words." for n in range(40))
    for name in ("a.txt", "café.txt"):
        (tmp_path / name).write_text(long + "\n\n" + long)
    corpus = CorpusConfig(paths=(str(tmp_path), str(world / "pages")), max_tokens=60)
    texts = list(read_corpus(list_files(corpus), corpus, lambda text: len(text.split())))
    passages: Counter[str] = Counter()
    for text in texts:
        source = text.document.source
        name, _, row = source.rpartition("#")
        assert page["text_id"](name, int(row), passages[source]) == text.text_id
        passages[source] += 1
    assert max(passages.values()) > 3
    assert {text.text_id for text in texts if "pages" in text.document.source} == {
        row["text_id"] for row in read_rows(world / "annotations", ["text_id"])
    }


@pytest.mark.parametrize("tool", [*PACKAGED, "Units", "Prices", "a", "T_1"])
def test_the_numbers_of_tools_are_those_of_the_page(tool: str) -> None:
    assert run_block("Random numbers", {})["tool_number"](tool) == stream_number(tool)


@pytest.mark.parametrize(("seed", "share"), [(0, 0.01), (0, 0.5), (7, 0.3), (-1, 1.0), (3, 0.0)])
def test_the_random_share_is_that_of_the_page(seed: int, share: float) -> None:
    page = run_block("Text ids and the random share", {})
    method = MethodConfig(seed=seed, calculator_random_share=share)
    for number in range(600):
        text_id = page["text_id"]("some/file.jsonl", number + 1, number % 3)
        text = Text(text_id, Document("some/file.jsonl#1"), "In 1998 he had 3 sons and in 2005 still 17.")
        assert select("Calculator", text, method).chosen == page["in_random_share"](text_id, seed, share)


@pytest.mark.parametrize("one_per_position", [False, True])
@pytest.mark.parametrize("max_examples", [1, 5, 25_000])
@pytest.mark.parametrize("tau_f", [None, {"Calculator": 0.3, "Calendar": 0.05}])
def test_a_merge_can_be_recomputed_from_the_page(
    world: Path,
    tmp_path: Path,
    tau_f: dict[str, float] | None,
    max_examples: int,
    one_per_position: bool,
) -> None:
    config = MergeConfig(
        annotations=(world / "annotations",),
        output=tmp_path / "augmented",
        tau_f=tau_f,
        max_examples=max_examples,
        one_call_per_position=one_per_position,
        seed=4,
    )
    merge(config)
    rows = list(read_rows(world / "annotations", ["text_id", "text", "calls"]))
    of_page = page_of_merge(rows, tau_f or dict.fromkeys(TOOLS, 0.0), 4, max_examples, one_per_position)
    expected = list(read_rows(config.output, ["text_id", "text", "plain", "tool_names"]))
    assert expected
    assert of_page == expected


def page_of_merge(
    rows: list[dict[str, Any]], tau_f: dict[str, float], seed: int, most: int, one_per_position: bool
) -> list[dict[str, Any]]:
    page: dict[str, Any] = {"rows": rows, "tau_f": tau_f, "merge_seed": seed, "max_examples": most}
    page["one_call_per_position"] = one_per_position
    for heading in ("Random numbers", "Text ids and the random share", "Merging"):
        run_block(heading, page)
    return list(page["augmented"]())


WORDS = "one uno two dos one uno three"
CALLS = st.fixed_dictionaries(
    {
        "tool": st.sampled_from(PACKAGED),
        "position": st.sampled_from([0, 7]),
        "p_api": st.just(0.5),
        "input": st.sampled_from(["one", "uno", "dos", "four"]),
        "result": st.just("r"),
        "l_plus": st.just(1.0),
        "l_empty": st.just(2.0),
        "l_call": st.just(2.0),
        "gain": st.sampled_from([0.4, 0.5, 0.7, 1.0, 1.5]),
    }
)


@given(
    st.lists(st.lists(CALLS, min_size=3, max_size=8), min_size=2, max_size=8),
    st.fixed_dictionaries(
        dict.fromkeys(TOOLS, st.sampled_from([0.5, 1.0])), optional={"MT": st.just(0.5), "QA": st.just(1.0)}
    ),
    st.integers(-3, 3),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_choices_of_a_merge_are_those_of_the_page(
    calls: list[list[dict[str, Any]]], tau_f: dict[str, float], seed: int, most: int, one: bool
) -> None:
    """Ties, the rule of MT, caps and shared positions, which a small run has too few of."""
    rows = [{"text_id": number, "text": WORDS, "calls": of_text} for number, of_text in enumerate(calls)]
    mixture = choose(rows, tau_f, most, seed, one_per_position=one, input_rule=frozenset({"MT"}))
    assert page_of_merge(rows, tau_f, seed, most, one) == list(augment(rows, mixture, Counter()))


def reasons_in(path: str, *functions: str) -> set[str]:
    """Strings that a module returns, gives to one of the functions, or assigns to `reason`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PAGE.parents[1] / path).read_text())):
        values: list[ast.expr | None] = []
        is_reason = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason"
        if isinstance(node, ast.Return) or is_reason:
            values = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in functions:
            values = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "reason")]
        for value in values:
            branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found |= {b.value for b in branches if isinstance(b, ast.Constant) and isinstance(b.value, str)}
    return found - {""}


def reasons_of_tools() -> set[str]:
    modules = (PAGE.parents[1] / "tools_service" / "tools").glob("*.py")
    found = (reasons_in(str(path), "ToolResult", "NoResultError") for path in modules)
    return set().union(*found) | TRANSIENT | {EMPTY_RESULT}


def reasons_of_draws() -> set[str]:
    paths = ("tools_service/syntax/calls.py", "pipeline/method/drawn_calls.py")
    return set().union(*(reasons_in(path, "Malformed") for path in paths))


def reasons_of_selection() -> set[str]:
    rules = reasons_in("pipeline/method/selection.py", "Selection")
    return {rule.removeprefix("no: ") for rule in rules if rule.startswith("no: ")} | {"context"}


@pytest.mark.parametrize(
    ("beginning", "in_code"),
    [
        ("A tool is not tried on a text", reasons_of_selection()),
        ("A draw is no call", reasons_of_draws()),
        ("A tool gives no result", reasons_of_tools()),
        ("A call with a result is not scored", reasons_in("pipeline/method/filtering.py", "_discard")),
    ],
)
def test_the_page_lists_every_reason(beginning: str, in_code: set[str]) -> None:
    section = PAGE.read_text().split("\n## Reasons\n")[1].split("\n## ")[0]
    [paragraph] = [part for part in re.split(r"\n\n(?=[A-Z])", section) if part.startswith(beginning)]
    listed = {name.strip() for name in re.findall(r"`([^`]+)`", paragraph.replace("\n", " "))}
    assert {re.sub(r"\s+", " ", name) for name in listed if "." not in name} - {"no:", "tool:"} == in_code


NUMBERS = [
    ("1/2 cup", [1, 2], False),
    ("1½ cups", [1], False),
    ("½", [], False),
    ("1,234", [1234], False),
    ("1 234 apples", [1, 234], False),
    ("1.234,56", [1.234, 56], False),
    ("x <= 5", [5], True),
    ("x != 5", [5], True),
    ("width=5px", [5], True),
    ("= .5", [], False),
    ("equals about 5", [5], False),
    ("total of Rs 5", [5], False),
    ("total of $5", [5], True),
    ("= 5th", [], True),
    ("5kg and $5", [5, 5], False),
    ("5 million", [5], False),
    ("50%", [50], False),
    ("10²", [10], False),
    ("1990s", [1990], False),
    ("-5", [5], False),
    ("10:30", [10, 30], False),
    ("٣ three", [], False),
    ("v1.2", [], False),
]


@pytest.mark.parametrize(("text", "values", "announced"), NUMBERS)
def test_numbers_are_what_the_page_says(text: str, values: list[float], announced: bool) -> None:
    assert [number.digits / 10**number.decimals for number in find_numbers(text)] == values
    assert announces_result(text) == announced
