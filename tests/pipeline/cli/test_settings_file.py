"""Reading YAML and TOML: values, lines, and that only data is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.settings_file import SettingsFile, SettingsFileError

pytestmark = pytest.mark.unit


def read(folder: Path, content: str, name: str = "run.yaml") -> SettingsFile:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return SettingsFile.read(file)


def test_each_value_has_its_line(tmp_path: Path) -> None:
    file = read(tmp_path, "a:\n  b: [1,\n    2]\nc:\n- d: x\n")
    assert file.values == {"a": {"b": [1, 2]}, "c": [{"d": "x"}]}
    expected = {("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3}
    assert file.lines == {**expected, ("c",): 4, ("c", 0): 5, ("c", 0, "d"): 5}


def test_an_error_names_the_line_of_the_nearest_value(tmp_path: Path) -> None:
    file = read(tmp_path, "a:\n  b: 1\n")
    assert str(file.error(("a", "b", "c"), "wrong")) == f"--config {file.path}, line 2: wrong"
    assert str(file.error(("z",), "wrong")) == f"--config {file.path}: wrong"


def test_toml_has_values_without_lines(tmp_path: Path) -> None:
    file = read(tmp_path, "\ufeff[a]\nb = 1\n", "run.TOML")
    assert (file.values, file.lines) == ({"a": {"b": 1}}, {})


@pytest.mark.parametrize(
    "content",
    ["a: !!python/name:os.system\n", "a: !!python/object:os.x {}\n", "a: &b [*b]\n", "<<: {a: 1}\n"],
)
def test_only_data_is_read(content: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsFileError):
        read(tmp_path, content)
