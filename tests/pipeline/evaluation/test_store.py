"""The files of a label: what is kept, what is used again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.predictions import Prediction, refused_prediction
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import Evaluation, EvaluationError, ModelResult, summarise
from pipeline.evaluation.store import ResultStore
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import Generation
from tools_service.base.files import OutputError

pytestmark = pytest.mark.unit
QUESTIONS = tuple(Question(id=str(n), prompt="2 + 2 is", answers=("4",), scoring="number") for n in range(6))
SAME, OTHER = "0" * 32, "1" * 32


def prediction(number: int, *, failed: str = "", refused: str = "") -> Prediction:
    if refused:
        return refused_prediction("b", QUESTIONS[number], refused, "why")
    calls = () if failed else (CompletedCall("Calculator", "2 + 2", "4", 0),)
    failures = (FailedCall("[Calculator(", failed, 1),) if failed else ()
    generation = Generation(f" {number}", calls, failures, "newline", 1, None, 5, 9)
    return Prediction("b", QUESTIONS[number], generation, number == 4)


def model_result(*predictions: Prediction, fingerprint: str = SAME) -> ModelResult:
    found = {"b": summarise(predictions, fingerprint)} if predictions else {}
    return ModelResult(model="m", k=1, disabled=False, tools_off=(), benchmarks=found)


def known(tmp_path: Path, fingerprint: str = SAME) -> dict[int, Prediction]:
    return ResultStore(tmp_path / "e.json", "m").known("b", fingerprint, QUESTIONS)


def test_chunks_are_known_to_the_next_process(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "e.json", "m")
    store.add_part(SAME, {n: prediction(n) for n in (1, 3)})
    store.add_part(SAME, {5: prediction(5)})
    assert known(tmp_path) == {n: prediction(n) for n in (1, 3, 5)}
    assert known(tmp_path, OTHER) == {}
    assert known(tmp_path, "") == {}
    store.remove_parts(SAME)
    assert known(tmp_path) == {}
    store.remove_parts()
    assert not store.parts.exists()


def test_a_benchmark_is_known_after_its_chunks_are_gone(tmp_path: Path) -> None:
    store, predictions = ResultStore(tmp_path / "e.json", "m"), [prediction(n) for n in range(6)]
    store.benchmark("b", SAME, predictions)
    store.save(model_result(*predictions))
    assert list(known(tmp_path).values()) == predictions
    assert known(tmp_path, OTHER) == {}


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ({"failed": "no_arrow"}, False),
        ({"refused": "too_long"}, False),
        ({"failed": "deadline"}, True),
        ({"failed": "replica died"}, True),
        ({"refused": "actor_died"}, True),
        ({"refused": "out_of_memory"}, True),
    ],
)
def test_what_the_machine_lost_is_asked_again(tmp_path: Path, lost: dict[str, str], again: bool) -> None:
    """But only that: the other questions of the chunk, or of the benchmark, keep their answers."""
    predictions = [prediction(n, **(lost if n == 2 else {})) for n in range(6)]
    store = ResultStore(tmp_path / "e.json", "m")
    store.add_part(SAME, dict(enumerate(predictions)))
    expected = [0, 1, 3, 4, 5] if again else list(range(6))
    assert sorted(known(tmp_path)) == expected
    store.remove_parts()
    store.benchmark("b", SAME, predictions)
    store.save(model_result(*predictions))
    assert sorted(known(tmp_path)) == expected
    store.add_part(SAME, {2: prediction(2)})
    assert known(tmp_path)[2] == prediction(2)


def test_a_damaged_chunk_costs_its_questions_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResultStore(tmp_path / "e.json", "m")
    store.add_part(SAME, {1: prediction(1)})
    [path] = store.parts.iterdir()
    store.add_part(SAME, {2: prediction(2)})
    path.write_bytes(path.read_bytes()[:-40])
    assert list(known(tmp_path)) == [2]
    assert "asked again" in caplog.text


def test_files_of_others_stay_among_the_chunks(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "e.json", "m")
    store.add_part(SAME, {1: prediction(1)})
    names = ("notes.txt", "mine.parquet", f"{SAME}.parquet", ".x.part")
    for name in names:
        (store.parts / name).write_text("mine")
    (store.parts / f".{SAME}-00000001-{OTHER}.parquet.{OTHER}.part").write_text("")
    store.remove_parts()
    assert sorted(path.name for path in store.parts.iterdir()) == sorted(names)


def test_predictions_are_typed_rows(tmp_path: Path) -> None:
    store, predictions = ResultStore(tmp_path / "e.json", "m"), [prediction(n) for n in range(6)]
    predictions[1] = prediction(1, failed="no_arrow")
    predictions[2] = prediction(2, refused="too_long")
    store.benchmark("b", SAME, predictions)
    store.save(model_result(*predictions))
    rows = pq.read_table(store.predictions).to_pylist()
    assert rows[0]["annotated"] == " [Calculator(2 + 2) -> 4] 0"
    assert rows[1]["failed"] == [{"written": "[Calculator(", "reason": "no_arrow", "position": 1}]
    assert (rows[2]["refused"], rows[2]["message"], rows[2]["right"]) == ("too_long", "why", False)
    assert [row["refused"] for row in rows].count(None) == 5
    assert (rows[0]["tokens"], rows[0]["prompt_tokens"], rows[0]["sampled_tokens"]) == (1, 5, 9)


def test_libraries_read_predictions(tmp_path: Path) -> None:
    datasets, pandas = map(pytest.importorskip, ("datasets", "pandas"))
    store, predictions = ResultStore(tmp_path / "e.json", "m"), [prediction(n) for n in range(6)]
    store.benchmark("b", SAME, predictions)
    store.save(model_result(*predictions))
    file, cache = str(store.predictions), str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=file, cache_dir=cache)["train"]
    assert loaded[4]["right"] is True
    assert loaded[0]["calls"][0]["tool"] == "Calculator"
    assert pandas.read_parquet(store.predictions)["right"].mean() == pytest.approx(1 / 6)


def test_the_predictions_of_an_earlier_version_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = tmp_path / "e.m.jsonl"
    earlier.write_text('{"benchmark": "b", "prediction": "4"}\n')
    with caplog.at_level("INFO"):
        ResultStore(tmp_path / "e.json", "m").save(model_result())
        ResultStore(tmp_path / "e.json", "m")
    assert caplog.text.count("e.m.jsonl is of an earlier version and stays") == 1
    assert earlier.read_text() == '{"benchmark": "b", "prediction": "4"}\n'


def test_a_result_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = {"accuracy": 0.5, "n": 2, "calls": 1, "calls_by_tool": {}, "failed_calls": {}}
    model = {"model": "m", "k": 10, "disabled": False, "tools_off": [], "benchmarks": {"b": old}}
    model |= {"perplexity": None, "held_out": None}
    (tmp_path / "e.json").write_text(json.dumps({"models": {"m": model}}))
    assert Evaluation.read(tmp_path / "e.json").models["m"].benchmarks["b"].n == 2


@pytest.mark.parametrize("content", ["", "null", "[]", "{", "{}", '{"models": 5}', "[" * 100_000, "\x00"])
def test_an_output_of_another_origin_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=r"e\.json: not a result of evaluate") as caught:
        ResultStore(path, "m")
    assert "\n" not in str(caught.value)
    assert path.read_text() == content


@pytest.mark.parametrize("kind", ["text", "empty", "theirs", "damaged"])
def test_a_file_in_the_place_of_the_predictions_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "e.m.parquet"
    path.write_text("notes" if kind == "text" else "")
    if kind == "theirs":
        pq.write_table(pa.table({"benchmark": ["b"]}), path)
    if kind == "damaged":
        path.unlink()
        ResultStore(tmp_path / "e.json", "m").save(model_result())
        path.write_bytes(path.read_bytes()[:-20])
    content = path.read_bytes()
    with pytest.raises(EvaluationError, match=r"e\.m\.parquet: would be replaced"):
        ResultStore(tmp_path / "e.json", "m")
    assert path.read_bytes() == content


def test_an_output_that_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for output in (tmp_path / "file" / "e.json", tmp_path / "file" / "deeper" / "e.json"):
        with pytest.raises(OutputError, match="cannot write"):
            ResultStore(output, "m")
    with pytest.raises(OutputError, match="cannot write"):
        ResultStore(tmp_path / "e.json", "m" * 300)
    with pytest.raises(EvaluationError, match="not a result"):
        ResultStore(tmp_path / "folder", "m")


def test_results_that_are_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    result = ModelResult(model="m", k=1, disabled=False, tools_off=(), benchmarks={})
    labels = [f"label{n}" for n in range(20)]
    stores = [ResultStore(tmp_path / "e.json", label) for label in labels]
    threads = [Thread(target=store.save, args=(result,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Evaluation.read(tmp_path / "e.json").models) == sorted(labels)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
