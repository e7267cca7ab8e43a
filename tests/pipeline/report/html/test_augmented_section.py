"""What a report says of C*."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.augmentation.merge import merge
from pipeline.base.config import MergeConfig
from pipeline.report.html.augmented_section import augmented_section
from pipeline.storage.manifest import ManifestError
from pipeline.storage.row_files import RowFileError
from tests.pipeline.augmentation.test_merge import annotated, annotations, call
from tests.pipeline.exporting.augmented import PLAIN, TEXT, as_earlier_versions_wrote, augmented
from tests.pipeline.report.run_folders import damage

pytestmark = pytest.mark.unit


def test_counts_stand_beside_those_of_the_paper(tmp_path: Path) -> None:
    section = augmented_section(augmented(tmp_path))
    assert (section.texts, section.calls) == (3, 6)
    tools = {tool.tool: tool for tool in section.tools}
    calculator = tools["Calculator"]
    assert (calculator.candidates, calculator.examples, calculator.calls) == (3, 3, 3)
    assert calculator.at == {"0.5": 3, "1.0": 0, "2.0": 0}
    assert calculator.paper == {"0.5": 3680, "1.0": 994, "2.0": 138}  # Table 2
    assert list(tools)[:3] == ["QA", "WikiSearch", "Calculator"]
    facts = {fact.name: fact.value for fact in section.facts}
    assert facts["annotations"] == str(tmp_path / "annotations")
    assert facts["texts annotated"] == "3"
    assert any(sentence.startswith("WikiSearch: no call reaches tau_f") for sentence in section.losses)


def test_texts_have_their_calls_and_are_shown_without_them(tmp_path: Path) -> None:
    section = augmented_section(augmented(tmp_path))
    assert [(text.text, text.plain, text.tools) for text in section.examples] == [
        (TEXT, PLAIN, ("QA", "Calculator"))
    ] * 3


def test_a_tool_with_few_texts_is_among_the_shown_ones(tmp_path: Path) -> None:
    rows = [annotated(n, PLAIN, call("QA", 0, 1.5)) for n in range(300)]
    rows += [annotated(n, PLAIN, call("Calculator", 32, 0.7)) for n in (300, 301)]
    folder = annotations(tmp_path / "annotations", rows)
    merge(MergeConfig(annotations=(folder,), output=tmp_path / "augmented"))
    shown = augmented_section(tmp_path / "augmented").examples
    assert len(shown) == 40
    assert sum(text.tools == ("Calculator",) for text in shown) == 2
    assert shown == augmented_section(tmp_path / "augmented").examples


def test_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = augmented(tmp_path)
    now = augmented_section(folder)
    as_earlier_versions_wrote(folder)
    assert augmented_section(folder) == now


def test_an_empty_c_has_a_section(tmp_path: Path) -> None:
    folder = annotations(tmp_path / "annotations", [annotated(1, PLAIN)])
    merge(MergeConfig(annotations=(folder,), output=tmp_path / "augmented"))
    section = augmented_section(tmp_path / "augmented")
    assert section.examples == ()
    assert "C* is empty: there is nothing to fine-tune on" in section.losses


def test_damage_is_named(tmp_path: Path) -> None:
    folder = augmented(tmp_path)
    damage(folder / "rows" / "00000.parquet")
    with pytest.raises(RowFileError, match=r"00000\.parquet"):
        augmented_section(folder)
    damage(folder / "manifest.json")
    with pytest.raises(ManifestError, match=r"manifest\.json cannot be read as that of merge"):
        augmented_section(folder)
