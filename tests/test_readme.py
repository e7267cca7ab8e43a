"""README is short and true: its commands exist, its links lead somewhere, its examples print what is shown.

The examples of `generate` need the demo's model, which tests do not make. Here their command lines are
parsed and their calculations done; tests/bench/test_readme.py runs them after `make demo`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shlex

import pytest

from bench.readme import Example, differences, examples
from cluster.submit import ROOT
from pipeline.cli.main import parse
from tools_service.contract.tool import ToolInput
from tools_service.syntax.calls import linearise
from tools_service.tools.calculator import Calculator

pytestmark = pytest.mark.unit
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = examples(README)


def test_it_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_its_links_and_pictures_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


def test_its_modules_and_targets_exist() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert {"pipeline", "tools_service", "bench.truth"} <= modules
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    targets = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"setup", "demo"} <= targets
    assert not [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)]


def test_the_annotated_text_is_a_page_of_the_demo_with_the_tools_answer() -> None:
    plain, annotated = re.findall(r"^> (.*)", README, re.MULTILINE)
    files = sorted((ROOT / "demo/pages").glob("*.gz"))
    pages = "".join(gzip.decompress(path.read_bytes()).decode() for path in files)
    assert json.dumps(plain, ensure_ascii=False)[1:-1] in pages
    call = re.search(r" \*\*\[Calculator\((.*?)\) -> (.*?)\]\*\*", annotated)
    assert call is not None
    assert annotated.replace(call[0], "") == plain
    assert Calculator()([ToolInput(call[1])])[0].result == call[2]
    assert linearise("Calculator", call[1], call[2]).strip() == call[0].strip(" *")


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.command[:60] for example in EXAMPLES])
def test_an_example_is_a_command_line_that_exists(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, module, package, *argv = shlex.split(example.command)
    assert (program, module) == ("python", "-m")
    if package == "pipeline":
        parse(argv[0], argv[1:])
        prompt = next(word for word in argv[1:] if " " in word)
        assert example.output.startswith(prompt)
        for written, result in re.findall(r"\[Calculator\((.*?)\) -> (.*?)\]", example.output):
            assert Calculator()([ToolInput(written)])[0].result == result
    else:
        assert not differences(example, ROOT)


def test_there_are_examples_with_and_without_a_call() -> None:
    called = ["[" in example.output for example in EXAMPLES if " generate " in example.command]
    assert {True, False} == set(called)
    assert any(example.command.startswith("python -m tools_service") for example in EXAMPLES)
