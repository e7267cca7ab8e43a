"""An index folder that cannot be opened says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.index import IndexFolderError
from tools_service.retrieval.retriever import Retriever

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no index at .*python -m tools_service index"),
        ("{broken", "cannot be read"),
        ('{"settings": 1}', "cannot be read"),
        ('{"settings": {"format": 1}}', "another version"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(IndexFolderError, match=message):
        Retriever(WikiSearchConfig(index=tmp_path))
