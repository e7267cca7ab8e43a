"""The evaluation on held-out texts, against the one of the command evaluate and on two workers."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.fixtures.worker_processes import worker_processes
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import perplexity
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.evaluation.held_out import Evaluator, held_out_loss, texts_of
from pipeline.finetuning.step.training import Training
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, rows, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    base_model(folder / "base")
    write(folder / "augmented", [rows(14), rows(24)[14:]])
    return folder


def started(config: FinetuneConfig, rank: int = 0) -> tuple[Training, Evaluator]:
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    data = load_examples(config, tokenizer)
    batches = IndexedBatches(data.train, config, rank)
    training = Training(config, batches, tokenizer, rank=rank, device=CPU)
    return training, Evaluator(training, data.held_out)


def without_end_of_text(folder: Path, copy: Path) -> Path:
    """The base model, whose tokenizer has no end of text here."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.eos_token = None
    AutoModelForCausalLM.from_pretrained(folder / "base").save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    return copy


def test_the_perplexity_is_that_of_evaluate_where_texts_have_no_end_token(
    folder: Path, tmp_path: Path
) -> None:
    config = configuration(folder, workers=1)
    path = str(without_end_of_text(folder, tmp_path / "base"))
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
    training, evaluator = started(config)
    found, _ = evaluator.evaluate(3)
    _, plain = texts_of(config.data, evaluator._held_out.text_ids)
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(path), training.tokenizer)
    expected, counted = perplexity(model, plain, disabled=False)
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert (found.plain_tokens, counted.left_out) == (counted.tokens, 0)
    assert found.held_out_loss != pytest.approx(math.log(expected), rel=1e-3), (
        "that is of the texts with calls"
    )


def test_beside_evaluate_it_predicts_the_end_of_each_text(folder: Path) -> None:
    config = configuration(folder, workers=1)
    training, evaluator = started(config)
    found, _ = evaluator.evaluate(3)
    _, plain = texts_of(config.data, evaluator._held_out.text_ids)
    reference = AutoModelForCausalLM.from_pretrained(config.model.path)
    model = LanguageModel(reference, training.tokenizer)
    expected, counted = perplexity(model, plain, disabled=False)
    ends = 0.0
    for example in (evaluator._plain[i] for i in range(len(evaluator._plain))):
        assert example[-1] == training.tokenizer.eos_token_id
        with torch.no_grad():
            logits = reference(torch.from_numpy(example[None, :-1]).long()).logits[0, -1]
        ends -= float(logits.log_softmax(-1)[example[-1]])
    assert found.plain_loss is not None
    assert found.plain_tokens == counted.tokens + len(plain)
    total = math.log(expected) * counted.tokens + ends
    assert found.plain_loss * found.plain_tokens == pytest.approx(total, rel=1e-5)


def test_trained_without_calls_both_losses_are_one_and_computed_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def counted(*arguments: Any) -> tuple[float, int]:
        calls.append(arguments)
        return held_out_loss(*arguments)

    monkeypatch.setattr("pipeline.finetuning.evaluation.held_out.held_out_loss", counted)
    _, with_calls = started(configuration(folder, workers=1))
    text, _ = with_calls.evaluate(0)
    assert len(calls) == 2
    calls.clear()
    _, without = started(configuration(folder, workers=1, column="plain"))
    plain, probe = without.evaluate(0)
    assert len(calls) == 1
    assert (plain.held_out_loss, plain.tokens) == (plain.plain_loss, plain.plain_tokens)
    assert (plain.plain_loss, plain.plain_tokens) == (text.plain_loss, text.plain_tokens), "the same texts"
    assert probe is not None
    assert probe.expected == {"Calculator": 5}, "the baseline is asked the same"


def test_texts_are_found_in_any_file_and_in_the_order_of_the_ids(folder: Path) -> None:
    ids = load_examples(
        configuration(folder), AutoTokenizer.from_pretrained(folder / "base")
    ).held_out.text_ids[::-1]
    by_id = {row["text_id"]: row for row in rows(24)}
    texts, plain = texts_of(folder / "augmented", ids)
    assert texts == [by_id[i]["text"] for i in ids.tolist()]
    assert plain == [by_id[i]["plain"] for i in ids.tolist()]


def evaluate_in_process(rank: int, workers: int, folder: Path, stage: int) -> list[dict[str, Any]]:
    """Two steps, then an evaluation; runs on every worker."""
    training, evaluator = started(configuration(folder, workers=workers, zero_stage=stage), rank)
    for step in (1, 2):
        training.step(step)
    evaluation, probe = evaluator.evaluate(2)
    assert probe is not None
    return [asdict(evaluation), asdict(probe)]


@pytest.mark.timeout(600)
def test_two_workers_evaluate_as_one_does_at_any_stage(folder: Path) -> None:
    training, evaluator = started(configuration(folder, workers=1))
    for step in (1, 2):
        training.step(step)
    evaluation, probe = evaluator.evaluate(2)
    assert probe is not None
    with worker_processes(2) as run:
        by_stage = [run(evaluate_in_process, 2, folder, stage) for stage in (2, 3)]
    for of_workers in by_stage:
        assert of_workers[0] == of_workers[1], "all workers must decide alike"
        found, counts = of_workers[0]
        assert found == pytest.approx(asdict(evaluation), rel=1e-5)
        assert counts == asdict(probe)
