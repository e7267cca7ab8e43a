"""The commands report and status, and the report at the end of other commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pipeline.augmentation.merge import merge
from pipeline.base.config import MergeConfig
from pipeline.cli import main as cli
from pipeline.cli.demo import chained, steps_of
from pipeline.cli.recipes import demo as demo_recipe
from pipeline.cli.reporting import report_at_end
from pipeline.report.run_parts import RunParts
from tests.pipeline.augmentation.test_merge import annotated, annotations, call
from tests.pipeline.exporting.augmented import PLAIN
from tests.pipeline.report.run_folders import damage, evaluated, whole_run
from tools_service.base.ownership import require_own
from tools_service.base.report_file import is_report

pytestmark = pytest.mark.unit


def content(page: Path) -> dict[str, object]:
    """The JSON in the page."""
    _, _, rest = page.read_text(encoding="utf-8").partition('type="application/json">')
    data: dict[str, object] = json.loads(rest.partition("</script>")[0])
    return data


def source(folder: Path) -> Path:
    return annotations(folder, [annotated(n, PLAIN, call("QA", 0, 1.5, "who?", "a nurse")) for n in range(3)])


def test_the_page_of_a_run_is_written_into_it_and_its_path_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole_run(tmp_path / "run")
    before = set(run.rglob("*"))
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert is_report(run / "report.html")
    assert set(run.rglob("*")) - before == {run / "report.html"}
    assert content(run / "report.html")["title"] == "run"
    assert cli.main(["report", "--folder", str(run)]) == 0, "replaces its own page"


def test_an_evaluation_has_its_page_beside_it_and_another_place_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = evaluated(tmp_path / "e.json", "m", right=(1,))
    assert cli.main(["report", str(file)]) == 0
    assert is_report(tmp_path / "e.html")
    assert cli.main(["report", str(file), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new" / "page.html")
    assert is_report(tmp_path / "new" / "page.html")


def test_a_page_of_a_user_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = whole_run(tmp_path / "run")
    (run / "report.html").write_text("<html>mine</html>")
    assert cli.main(["report", str(run)]) == 2
    assert "report.html exists and is not a report; name another file" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "<html>mine</html>"
    assert cli.main(["report", str(run), "--output", str(run / "evaluation.json")]) == 2


@pytest.mark.parametrize("command", ["report", "status"])
def test_a_folder_of_something_else_is_one_line_and_exit_code_2(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}: nothing to show here; expected an annotation (annotate)" in said
    assert list(tmp_path.iterdir()) == []


def test_damage_is_printed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = whole_run(tmp_path / "run")
    damage(run / "evaluation.json")
    assert cli.main(["report", str(run)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"! {run / 'evaluation.json'}: cannot be read and is left out")
    assert last == str(run / "report.html")


def test_merge_writes_its_page_and_replaces_a_folder_that_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = source(tmp_path / "annotations"), tmp_path / "augmented"
    argv = ["merge", "--annotations", str(folder), "--output", str(output)]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"report: {output / 'report.html'}", str(output)]
    assert content(output / "report.html")["annotation"] is not None
    assert cli.main(argv) == 0
    assert is_report(output / "report.html")
    assert cli.main([*argv, "--no-report"]) == 0
    assert "report" not in capsys.readouterr().out.splitlines()[-2]
    assert not (output / "report.html").exists(), "it was about the C* before"


def test_a_report_that_fails_is_a_warning_and_the_run_has_its_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = source(tmp_path / "annotations"), tmp_path / "augmented"
    merge(MergeConfig(annotations=(folder,), output=output))
    (output / "report.html").mkdir()
    with caplog.at_level(logging.WARNING):
        report_at_end(output, wanted=True)
    [record] = caplog.records
    assert "no report was written: " in record.getMessage()
    assert "\n" not in record.getMessage()
    assert capsys.readouterr().out == ""


def test_the_page_of_a_run_whose_parts_are_elsewhere(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (tmp_path / "page").mkdir()
    parts = RunParts(models=[run / "model"], evaluations=[run / "evaluation.json"])
    report_at_end(tmp_path / "page", wanted=True, parts=parts)
    page = content(tmp_path / "page" / "report.html")
    assert page["augmented"] is not None, "that of the model"
    assert page["evaluation"] is not None


def test_a_report_in_an_output_of_the_demo_is_our_own(tmp_path: Path) -> None:
    run, names = whole_run(tmp_path / "run"), ("annotations", "augmented", "model")
    for name in names:
        report_at_end(run / name, wanted=True)
        assert is_report(run / name / "report.html")
    for rows in (run / "annotations" / "rows").iterdir():
        rows.rename(rows.with_name(f"{'0' * 23}{rows.name[0]}.parquet"))  # as annotate names them
    for step, name in zip(steps_of(chained(demo_recipe()))[:3], names, strict=True):
        require_own(run / name, step.kind)


def test_the_status_as_lines_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = whole_run(tmp_path / "run")
    assert cli.main(["status", str(run), "--watch", "60"]) == 0, "nothing runs, so it ends"
    assert f"{run / 'annotations'}: annotation, finished\n  3 texts\n" in capsys.readouterr().out
    assert cli.main(["status", "--folder", str(run / "model"), "--json"]) == 0
    [part] = json.loads(capsys.readouterr().out)["parts"]
    assert (part["kind"], part["done"], part["total"]) == ("training", 4, 4)


def test_watching_ends_when_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools_service.base.locks import LOCK, file_lock

    folder = annotations(tmp_path / "a", [annotated(1, PLAIN)], state="unfinished")
    lock = file_lock(folder / LOCK, folder)
    lock.__enter__()
    monkeypatch.setattr("time.sleep", lambda seconds: lock.__exit__(None, None, None))
    assert cli.main(["status", str(folder), "--watch", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count("annotation, running") == 1
    assert said.count("annotation, unfinished; no process writes here") == 1


@pytest.mark.parametrize("name", ["annotate", "merge", "finetune", "evaluate", "demo"])
def test_no_report_leaves_it_out(name: str) -> None:
    assert cli.parse(name, []).report is True  # type: ignore[attr-defined]
    assert cli.parse(name, ["--no-report"]).report is False  # type: ignore[attr-defined]


def test_a_dry_run_names_what_would_be_read_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole_run(tmp_path / "run")
    assert cli.main(["report", str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{run / 'report.html'}  new" in said
    assert str(run / "model-plain") in said
    assert not (run / "report.html").exists()
    (run / "report.html").write_text("mine")
    assert cli.main(["report", str(run), "--dry-run"]) == 2
    assert cli.main(["status", str(tmp_path / "nowhere"), "--dry-run"]) == 2
