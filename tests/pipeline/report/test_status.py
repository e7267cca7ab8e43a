"""How far a run is, by its files: while it goes on, after it was killed, and when it has finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Document, Text
from pipeline.evaluation.store import ResultStore
from pipeline.report.row_counts import RowCounter
from pipeline.report.status import PartStatus, StatusReader
from pipeline.report.status_lines import duration, status_lines
from pipeline.storage.expected_texts import ExpectedTexts
from pipeline.storage.row_files import ROWS
from tests.pipeline.augmentation.test_merge import annotated, annotations, call
from tests.pipeline.exporting.augmented import PLAIN
from tests.pipeline.report.run_folders import answered, evaluated, fine_tuned, whole_run
from tools_service.base.errors import ConfigurationError
from tools_service.base.locks import LOCK, file_lock, output_lock

pytestmark = pytest.mark.unit
START = 1_675_036_800.0  # 2023-01-30, when the sessions of `annotations` start


def part(folder: Path) -> PartStatus:
    [only] = StatusReader(folder).read().parts
    return only


def lines(folder: Path) -> str:
    return "\n".join(status_lines(StatusReader(folder).read()))


def unfinished(folder: Path) -> Path:
    """Ten texts in five files, one each 10 s: one of them failed, four have a kept call."""
    rows = [annotated(n, PLAIN, call("QA", 0, 1.5 if n % 2 else 0.1)) for n in range(9)]
    rows.append(Annotation(Text(9, Document("f#9"), PLAIN), "failed", "too long: 9 tokens", ()))
    annotations(folder, rows, files=5, state="unfinished")
    for number in range(5):
        moment = START + 60 + 10 * number
        os.utime(folder / ROWS / f"{number}.parquet", (moment, moment))
    return folder


@contextmanager
def killed_writer(folder: Path) -> Iterator[None]:
    """What a process leaves that was killed while it held the lock of a folder."""
    code = f"""
import time
from pathlib import Path
from tools_service.base.locks import file_lock
with file_lock(Path({str(folder / LOCK)!r}), Path({str(folder)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        yield


def test_a_finished_run(tmp_path: Path) -> None:
    status = StatusReader(whole_run(tmp_path / "run")).read()
    assert [(p.kind, p.state, p.done, p.total, p.unit) for p in status.parts] == [
        ("annotation", "finished", 3, 3, "texts"),
        ("C*", "finished", 3, 3, "texts"),
        ("training", "finished", 4, 4, "steps"),
        ("training", "finished", 4, 4, "steps"),
        ("evaluation", "finished", 20, 20, "questions"),
    ]
    assert status.parts[0].kept["QA"] == 3
    assert status.parts[1].kept["Calculator"] == 3
    assert status.parts[4].right["toolformer"] == {"svamp": 60.0}
    assert json.loads(status.model_dump_json())["parts"][2]["values"]["best perplexity"] > 1


def test_a_training_that_stopped_early(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "model", data=tmp_path / "augmented", steps=4, of=8)
    assert "stopped early at step 4 of 8" in lines(folder)
    (folder / "metrics.jsonl").unlink()
    assert "stopped early" not in lines(folder)


def test_an_annotation_that_runs(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a")
    ExpectedTexts(texts=30, is_estimate=True).write(folder)
    with file_lock(folder / LOCK, folder):
        status, text = part(folder), lines(folder)
    assert (status.state, status.done, status.total) == ("running", 10, 30)
    assert status.texts == {"annotated": 9, "failed": 1}
    assert status.kept["QA"] == 4
    assert status.failures == {"too long": 1}
    assert status.rate == pytest.approx(8 / 40)  # the first file has the time of the start in it
    assert status.seconds_left == pytest.approx(100)
    assert status.holder is not None
    assert status.holder.pid == os.getpid()
    assert "10 of about 30 texts (33%), 0.2 per s, about 2 min left" in text
    assert f"process {os.getpid()} on " in text


def test_a_killed_annotation_says_that_no_process_writes(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a")
    with killed_writer(folder):
        status, text = part(folder), lines(folder)
    assert (status.state, status.rate, status.seconds_left) == ("stopped", None, None)
    assert status.holder is not None
    assert status.holder.holds is False
    assert "unfinished; no process writes here; the same command goes on" in text
    assert "10 texts done, of how many is not known yet" in text
    assert "which did not end by itself" in text


def test_row_files_are_read_once_and_damaged_ones_left_out(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a")
    (folder / ROWS / "9.parquet").write_bytes(b"PAR1, cut off")
    counter = RowCounter(folder, {"QA": 1.0})
    assert counter.count().texts == 10
    (folder / ROWS / "0.parquet").write_bytes(b"not read again")
    table = pa.Table.from_pylist([annotated(77, PLAIN).to_row()], schema=ANNOTATION_SCHEMA)
    pq.write_table(table, folder / ROWS / "new.parquet")
    assert counter.count().texts == 11


def test_the_last_problem_of_the_logs_is_shown(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a")
    (folder / "logs").mkdir()
    record = {"time": "2026-01-01T00:00:02", "level": "error", "message": "the run\nstops", "error": "E: why"}
    older = {"time": "2026-01-01T00:00:01", "level": "warning", "message": "before"}
    newer = {"time": "2026-01-01T00:00:03", "level": "info", "message": "no problem"}
    (folder / "logs" / "h-1.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(newer)}\n" + '{"cut')
    (folder / "logs" / "h-2.jsonl").write_text(f"{json.dumps(older)}\nno json\n")
    assert part(folder).last_problem == "2026-01-01T00:00:02 the run stops (E: why)"


def test_a_training_that_runs(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path / "m", data=tmp_path / "c", steps=4, of=10, finished=False)
    for step, ago in ((2, 40.0), (4, 1.0)):
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir()
        os.utime(checkpoint, (time.time() - ago,) * 2)
    (folder / "checkpoints" / "step-000003").symlink_to("removed meanwhile")
    (folder / "checkpoints" / "step-000004.old").mkdir()
    with file_lock(folder / LOCK, folder):
        (folder / LOCK).write_text("process 7 on node, since 2023-01-30T00:00:00+00:00,")
        status = part(folder)
    assert (status.kind, status.state, status.done, status.total) == ("training", "running", 4, 10)
    assert status.values["loss"] == pytest.approx(1.6)
    assert status.values["perplexity"] > 1
    assert status.rate == pytest.approx(2 / 40, rel=0.2)
    assert status.seconds_left == pytest.approx(120, rel=0.2)
    (folder / LOCK).write_text("")
    assert "4 of 10 steps (40%)" in lines(folder)
    assert part(folder).state == "stopped"


def test_an_evaluation_that_runs(tmp_path: Path) -> None:
    file = evaluated(tmp_path / "evaluation.json", "base", right=(1,))
    store = ResultStore(file, "toolformer")
    store.add_part("2" * 32, {n: answered(n, right=True) for n in range(4)})
    with store.locked():
        status, text = part(tmp_path), lines(tmp_path)
    assert (status.state, status.done, status.total) == ("running", 14, None)
    assert status.right == {"base": {"svamp": 10.0}}
    assert "14 questions done, of how many is not known yet" in text
    assert part(file).state == "stopped"


def test_a_command_that_has_written_nothing_yet_is_starting(tmp_path: Path) -> None:
    output = tmp_path / "run" / "augmented"
    with output_lock(output):
        assert part(output).state == "starting"
        assert part(output.parent).output == str(output)
    file = tmp_path / "run" / "evaluation.json"
    with ResultStore(file, "base").locked():
        assert part(file).state == "starting"
    folder = tmp_path / "other" / "annotations"
    folder.mkdir(parents=True)
    with file_lock(folder / LOCK, folder):
        assert "starting; process" in lines(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="nothing to show here; expected an annotation"):
        StatusReader(tmp_path / "other").read()


def test_a_demo_between_two_steps_is_not_at_its_end(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    assert {part.state for part in StatusReader(run).read().parts} == {"finished"}
    with output_lock(run / "steps.json"):
        *finished, last = StatusReader(run).read().parts
    assert {part.state for part in finished} == {"finished"}
    assert (last.output, last.state) == (str(run / "steps.json"), "starting")


def test_a_part_that_cannot_be_read_is_a_line(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    path = run / "model" / "manifest.json"
    path.write_text(path.read_text().replace('"max_steps":4', '"max_steps":"many"'))
    status = StatusReader(run).read()
    assert len(status.parts) == 4
    assert next(line for line in status_lines(status) if line.startswith("! ")).startswith(
        f"! {path} was not"
    )
    evaluation = run / "evaluation.json"
    evaluation.write_text('{"models": {"base": {"benchmarks": ["svamp"]}}}')
    assert any(str(evaluation) in problem for problem in StatusReader(run).read().problems)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (110, "2 min"), (7_200, "2 h 0 min"), (400_000, "4 d 15 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
