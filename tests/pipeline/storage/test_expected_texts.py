"""How many texts a run of annotate expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.expected_texts import PROGRESS, ExpectedTexts, read_expected
from pipeline.storage.kinds import ANNOTATION

pytestmark = pytest.mark.unit


def test_another_process_reads_it(tmp_path: Path) -> None:
    expected = ExpectedTexts(texts=40, is_estimate=True)
    expected.write(tmp_path)
    assert read_expected(tmp_path) == expected
    assert list(ANNOTATION.foreign(tmp_path)) == []


@pytest.mark.parametrize("content", [None, "{", '{"texts": "many"}'])
def test_a_missing_or_damaged_file_says_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / PROGRESS).write_text(content)
    assert read_expected(tmp_path) is None
