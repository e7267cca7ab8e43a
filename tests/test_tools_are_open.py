"""No code knows the names of the tools, but their declarations, their own modules and the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
# The declarations, the presets that users may copy, and each tool's own `name`.
MAY_NAME_TOOLS = {"tools_service/contract/builtin.py", "pipeline/cli/recipes.py"}
OWN_NAME = re.compile(r'^    name = "\w+"$', re.M)
IMPORT = re.compile(r"^from \S+ import", re.M)
NAMES = "|".join(PACKAGED)
SECTIONS = NAMES.lower()
QUOTED_NAME = re.compile(rf"""["'](?:{NAMES})["']""")
SECTION = re.compile(rf"""\b(?:method|tools|config|self)\.(?:{SECTIONS})\b(?!\.)|\["(?:{SECTIONS})"\]""")
DOCUMENTATION = re.compile(r'"""(?:.|\n)*?"""|#.*|f?"(?:[^"\\\n]|\\.)* (?:[^"\\\n]|\\.)*"')


def sources() -> list[Path]:
    return [path for name in ("pipeline", "tools_service") for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_asks_for_a_tool_by_name(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name in MAY_NAME_TOOLS:
        return
    code = DOCUMENTATION.sub("", OWN_NAME.sub("", IMPORT.sub("", path.read_text())))
    assert QUOTED_NAME.findall(code) == []
    own = rf"tools\.{path.stem}" if path.parent.name == "tools" else None  # in its messages
    assert [found for found in SECTION.findall(code) if own is None or not re.fullmatch(own, found)] == []
    assert "ToolName = Literal" not in code


def test_the_search_finds_what_it_looks_for() -> None:
    for found in ('if tool == "MT":', "x = ('QA', 'Calendar')"):
        assert QUOTED_NAME.search(DOCUMENTATION.sub("", found))
    for found in ("config.tools.qa", "self.mt", 'sections["calculator"]'):
        assert SECTION.search(found)
