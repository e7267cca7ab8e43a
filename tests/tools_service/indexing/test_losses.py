"""What the end of `index` says of lines and files that gave no article."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tools_service.commands import main
from tools_service.indexing.losses import index_losses

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("skipped", "said"),
    [
        ({}, []),
        ({"header": 1}, []),
        ({"not JSON": 1}, ["1 of 9 lines gave no article (1 x not JSON)"]),
        ({"no text": 2, "not JSON": 3}, ["5 of 9 lines gave no article (3 x not JSON, 2 x no text)"]),
        ({"damaged file": 1}, ["1 file was not read to the end"]),
        ({"damaged file": 2, "no text": 1}, ["2 files were not read to the end", "1 of 9 lines"]),
    ],
)
def test_every_loss_is_said(skipped: dict[str, int], said: list[str]) -> None:
    lines = list(index_losses({"lines": 9, "skipped": skipped}))
    assert len(lines) == len(said)
    assert all(line.startswith(part) for line, part in zip(lines, said, strict=True))


def test_index_says_what_it_could_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call, which finds the index unchanged, says the same."""
    source = tmp_path / "source"
    source.mkdir()
    article = json.dumps(
        {"title": "Forth Bridge", "text": "The Forth Bridge is a railway bridge in Scotland."}
    )
    (source / "a.jsonl").write_text(article + "\n{broken\n")
    whole = gzip.compress((article + "\n").encode() * 500)
    (source / "b.jsonl.gz").write_bytes(whole[:-20])
    arguments = ["index", "--source", str(source), "--index", str(tmp_path / "index")]
    for _ in range(2):
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert "1 file was not read to the end" in printed.err
        assert "gave no article" in printed.err
        json.loads(printed.out)
