"""What a folder is taken for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report.run_parts import parts_of, report_path
from tests.pipeline.augmentation.test_merge import annotated, annotations
from tests.pipeline.report.run_folders import damage, evaluated, fine_tuned, whole_run
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_a_whole_run_and_each_of_its_parts(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / "steps.json").write_text("{}")
    (run / "report.html").write_text("an earlier page")
    parts = parts_of(run)
    assert parts.annotations == [run / "annotations"]
    assert parts.augmented == [run / "augmented"]
    assert parts.models == [run / "model", run / "model-plain"]
    assert parts.evaluations == [run / "evaluation.json"]
    assert parts.problems == []
    assert parts_of(run / "annotations").annotations == [run / "annotations"]
    assert parts_of(run / "augmented").augmented == [run / "augmented"]
    assert parts_of(run / "model").models == [run / "model"]
    assert parts_of(run / "evaluation.json").evaluations == [run / "evaluation.json"]


def test_slices_are_found_one_level_deeper(tmp_path: Path) -> None:
    for number in range(3):
        annotations(tmp_path / "slices" / str(number), [annotated(number, "Text")])
    assert len(parts_of(tmp_path).annotations) == 3


def test_outputs_that_are_not_finished(tmp_path: Path) -> None:
    annotations(tmp_path / "a", [annotated(1, "Text")], state="unfinished")
    fine_tuned(tmp_path / "m", data=tmp_path / "c", finished=False)
    (tmp_path / "evaluation.base.parts").mkdir()
    (tmp_path / ".augmented.12345678.part").mkdir()
    parts = parts_of(tmp_path)
    assert parts.annotations == [tmp_path / "a"]
    assert parts.models == [tmp_path / "m"]
    assert parts.evaluations == [tmp_path / "evaluation.json"], "it is written after the first benchmark"
    assert parts_of(tmp_path / "evaluation.json").evaluations == parts.evaluations


@pytest.mark.parametrize("name", ["nowhere", "empty", "note.txt", "other.json"])
def test_anything_else_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ConfigurationError) as error:
        parts_of(tmp_path / name)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}: no")
    assert "(annotate)" in message
    assert "(evaluate)" in message
    assert "\n" not in message


def test_what_is_damaged_is_named_and_the_rest_is_found(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    damage(run / "augmented" / "manifest.json")
    damage(run / "evaluation.json")
    (run / "notes.json").write_text("{")
    parts = parts_of(run)
    assert parts.models
    assert not parts.augmented
    assert not parts.evaluations
    assert len(parts.problems) == 2
    assert "augmented" in parts.problems[0]
    assert "evaluation.json" in parts.problems[1]
    with pytest.raises(ConfigurationError, match=r"nothing to show\. .*manifest\.json"):
        parts_of(run / "augmented")


def test_outputs_of_other_commands_are_passed_over(tmp_path: Path) -> None:
    file = evaluated(tmp_path / "evaluation.json", "m", right=())
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text(json.dumps({"passages": 3}))
    parts = parts_of(tmp_path)
    assert parts.evaluations == [file]
    assert parts.problems == []


def test_a_folder_that_may_not_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)  # root may read everything
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        parts_of(tmp_path)


def test_the_page_stands_in_the_folder_or_beside_the_file(tmp_path: Path) -> None:
    assert report_path(tmp_path) == tmp_path / "report.html"
    assert report_path(tmp_path / "evaluation.json") == tmp_path / "evaluation.html"


def test_the_outputs_of_a_later_round_are_found(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    whole_run(run / "round-2")
    parts = parts_of(run)
    assert parts.annotations == [run / "annotations", run / "round-2" / "annotations"]
    assert parts.augmented == [run / "augmented", run / "round-2" / "augmented"]
    assert run / "round-2" / "model" in parts.models
