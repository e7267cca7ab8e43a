"""A small run in files, made without a model: annotations, C*, a fine-tuned model and an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.config import ModelConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.evaluation.paired import store_paired_tests
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import ModelResult, summarise
from pipeline.evaluation.store import ResultStore
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest, RunIdentity
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, MetricsLog, TrainStep
from pipeline.inference.call_parser import CompletedCall
from pipeline.inference.generation import Generation
from tests.pipeline.exporting.augmented import augmented

BENCHMARK = "svamp"  # one of the paper's


def whole_run(folder: Path) -> Path:
    """annotations/, augmented/, model/, model-plain/ and evaluation.json in `folder`."""
    augmented(folder)
    fine_tuned(folder / "model", data=folder / "augmented")
    fine_tuned(folder / "model-plain", data=folder / "augmented", column="plain")
    evaluated(folder / "evaluation.json", "base", right=())
    evaluated(folder / "evaluation.json", "toolformer", right=range(6), compare_with="base")
    return folder


def fine_tuned(
    folder: Path, *, data: Path, column: str = "text", steps: int = 4, of: int = 4, finished: bool = True
) -> Path:
    """A folder of finetune after `steps` steps: its manifest, or run.json, and the metrics."""
    config = FinetuneConfig.model_validate(
        {
            "model": ModelConfig(path="m"),
            "data": data,
            "output": folder,
            "column": column,
            "max_steps": of,
            "batch_size": 2,
            "micro_batch_size": 2,
            "workers": 1,
        }
    )
    run = RunIdentity(config=config, data="0" * 32)
    folder.mkdir(parents=True)
    log = MetricsLog(folder / "metrics.jsonl", 0)
    log.append(HeldOutEvaluation(0, 2.0, 9))
    for step in range(1, steps + 1):
        log.append(TrainStep(step, 2.0 - 0.1 * step, 1e-4, None if step == 1 else 0.5))
        if step % 2 == 0:
            log.append(HeldOutEvaluation(step, 2.0 - (0.3 if step == 2 else 0.1), 9))
    if finished:
        manifest = FinetuneManifest(
            **dict(run),
            versions={"toolformer-on-ray": "1"},
            created="2026-01-01T00:00:00+00:00",
            texts={"trained_on": 20, "held_out": 2, "truncated": 1},
            best=HeldOutEvaluation(2, 1.7, 9),
            wall_s=12.0,
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
    else:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "run.json").write_text(run.model_dump_json())
    return folder


def evaluated(
    file: Path, label: str, right: Sequence[int], *, questions: int = 10, compare_with: str | None = None
) -> Path:
    """An evaluation of one label; it has the questions `right` right, and calls in the even ones."""
    predictions = [answered(number, right=number in right) for number in range(questions)]
    store = ResultStore(file, label)
    store.benchmark(BENCHMARK, "1" * 32, predictions)
    result = summarise(predictions, "1" * 32)
    store.save(
        ModelResult(
            model=f"models/{label}", k=10, disabled=False, tools_off=(), benchmarks={BENCHMARK: result}
        )
    )
    if compare_with is not None:
        store_paired_tests(file, {label: compare_with})
    return file


def answered(number: int, *, right: bool) -> Prediction:
    """The answer to a question, after a call if its number is even."""
    question = Question(
        id=str(number), prompt=f"{number} + 2 is", answers=(str(number + 2),), scoring="number"
    )
    calls = (CompletedCall("Calculator", f"{number} + 2", str(number + 2), 0),) if number % 2 == 0 else ()
    generation = Generation(f" {number + 2 if right else 0}", calls, (), "eos", 1, None, 5, 9)
    return Prediction(BENCHMARK, question, generation, right)


def damage(path: Path) -> None:
    """Cut a file in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without(path: Path, *names: str) -> None:
    """Remove names from the object in a JSON file, as earlier versions wrote it."""
    content = json.loads(path.read_text())
    for name in names:
        del content[name]
    path.write_text(json.dumps(content))
