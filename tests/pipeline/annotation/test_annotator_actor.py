"""On a real cluster: a text that kills the process, too many failures, and trying failed texts again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bench.fixtures import small_run as annotating
from pipeline.annotation import annotator_actor
from pipeline.annotation.annotator_actor import AnnotateBatch, AnnotationError
from pipeline.annotation.run import annotate
from pipeline.base.config import AnnotateConfig
from pipeline.base.records import Annotation, Text
from pipeline.engine import loading
from pipeline.storage.logs import LOGS
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import ROWS, read_failed
from tools_service.tools.client import ToolClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PAGES = 30
DEADLY = "Page 13:"


class Dying(AnnotateBatch):
    """An annotator whose process ends, as by a fault in a library, when one text comes by."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sound = self._annotator.aannotate
        self._annotator.aannotate = self._dying  # type: ignore[method-assign]

    async def _dying(
        self, texts: Sequence[Text], done: Callable[[float], None] | None = None
    ) -> list[Annotation]:
        if any(text.text.startswith(DEADLY) for text in texts):
            os._exit(1)
        return await self._sound(texts, done)


class Failing(AnnotateBatch):
    """An annotator that breaks on every other text, as with a tokenizer that does not fit the model."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        steps = self._annotator._steps

        async def fail(texts: Sequence[Text], done: Callable[[float], None]) -> list[Annotation]:
            if any(int(text.document.source.rpartition("#")[2]) % 2 for text in texts):
                raise IndexError("index out of range in self")
            return await steps(texts, done)

        self._annotator._steps = fail  # type: ignore[method-assign]


class NeverReady(AnnotateBatch):
    """An annotator whose process ends while it loads the model, as for lack of memory."""

    def __init__(self, config: AnnotateConfig, tools: ToolClient, progress: Any) -> None:
        annotator_actor._MAX_STARTS = 1
        loading.load_language_model = lambda *_: os._exit(1)  # type: ignore[assignment]
        super().__init__(config, tools, progress)


class NotFinite(AnnotateBatch):
    """An annotator whose model predicts NaN after one word; the checks at load have passed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        engine = self._annotator._model
        [word] = engine.tokenizer.encode(" rolls", add_special_tokens=False)
        with torch.no_grad():
            engine.model.get_input_embeddings().weight[word] = float("nan")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    annotating.save_model(folder / "model")
    annotating.write_prompts(folder / "prompts")
    annotating.write_corpus(folder / "pages", 1, PAGES)
    return folder


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / ROWS).sort_by("text_id").to_pylist()


def test_a_text_that_kills_the_process_fails_alone_and_can_be_tried_again(
    ray_cluster: None, world: Path
) -> None:
    config = annotating.config(world, world / "dying")
    manifest = annotate(config, Dying)
    assert manifest.counts is not None
    assert manifest.counts.texts == PAGES + 1
    assert manifest.counts.reasons["failed"] == {"process died": 1}
    rows = rows_of(config.output)
    [failed] = [row for row in rows if row["status"] == "failed"]
    assert failed["text"].startswith(DEADLY)
    assert failed["reason"].startswith("process died: 2 times, while it was annotating this text")
    files = (config.output / LOGS).glob("*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    said = [(line["text_id"], line["error"]) for line in lines if "text_id" in line]
    assert said == [(failed["text_id"], failed["reason"])]
    again = annotate(config.model_copy(update={"retry_failed": True}))
    assert again.counts is not None
    assert "failed" not in again.counts.status
    healed = rows_of(config.output)
    assert [row["text"] for row in healed] == [row["text"] for row in rows]
    assert [row for row in healed if not row["text"].startswith(DEADLY)] == [
        row for row in rows if row is not failed
    ]


def test_too_many_failures_stop_the_run_also_when_it_goes_on(ray_cluster: None, world: Path) -> None:
    config = annotating.config(world, world / "failing")
    strict = config.model_copy(update={"max_failed_share": 0.004})
    message = (
        r"\d+ of \d+ texts failed, .* x IndexError: index out of range in self \(texts \d+, .*--retry-failed"
    )
    with pytest.raises(AnnotationError, match=message):
        annotate(strict, Failing)
    assert read_manifest(config.output).state == "unfinished"
    lenient = annotate(config.model_copy(update={"max_failed_share": 0.5}), Failing)
    assert lenient.counts is not None
    assert lenient.counts.status["failed"] == len(list(read_failed(config.output))) > 5
    lenient.reopened().write(config.output)
    with pytest.raises(AnnotationError, match=message):
        annotate(strict)
    healed = annotate(strict.model_copy(update={"retry_failed": True}))
    assert healed.counts is not None
    assert "failed" not in healed.counts.status


def test_annotators_that_never_get_ready_are_not_started_for_ever(ray_cluster: None, world: Path) -> None:
    config = annotating.config(world, world / "never ready")
    with pytest.raises(AnnotationError, match="annotators died 1 times while they loaded the model"):
        annotate(config, NeverReady)


def test_scores_that_are_not_finite_stop_the_run(ray_cluster: None, world: Path) -> None:
    config = annotating.config(world, world / "not-finite")
    with pytest.raises(
        AnnotationError, match=r"text \d+, Calculator, position \d+: .* is not finite.*resumes the run"
    ):
        annotate(config, NotFinite)
    assert read_manifest(config.output).state == "unfinished"
