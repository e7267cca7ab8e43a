"""A Parquet file is there with all its rows, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.parquet import write_parquet

pytestmark = pytest.mark.unit


def test_the_rows_replace_those_of_an_earlier_file(tmp_path: Path) -> None:
    path, part = tmp_path / "rows.parquet", tmp_path / "rows.part"
    for values in ([1], [2, 3]):
        write_parquet(path, pa.table({"value": values}), part)
    assert pq.read_table(path)["value"].to_pylist() == [2, 3]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_earlier_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path, part = tmp_path / "rows.parquet", tmp_path / "rows.part"
    write_parquet(path, pa.table({"value": [1]}), part)

    def fail(*_: object) -> None:
        assert part.exists()
        raise error

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(error):
        write_parquet(path, pa.table({"value": [2]}), part)
    assert pq.read_table(path)["value"].to_pylist() == [1]
    assert list(tmp_path.iterdir()) == [path]
