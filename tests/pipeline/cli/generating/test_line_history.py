"""Where the history of typed lines is kept, and that nothing depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.generating.line_history import LineHistory, history_file

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("state", "folder"), [("/s", "/s"), ("relative", "/h/.local/state"), (None, "/h/.local/state")]
)
def test_the_file_is_in_the_state_folder_of_xdg(
    state: str | None, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if state is not None:
        monkeypatch.setenv("XDG_STATE_HOME", state)
    assert history_file() == Path(folder, "toolformer", "generate_history")


def test_a_history_that_cannot_be_kept_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toolformer").write_text("a file where the folder would be")
    history = LineHistory(tmp_path / "toolformer" / "generate_history")
    error = capsys.readouterr().err
    assert "! the history of lines is not kept: " in error
    assert error.count("\n") == 1
    monkeypatch.setattr("builtins.input", lambda prompt: f"after {prompt}")
    assert history.read("> ") == "after > "
    assert capsys.readouterr().err == ""
