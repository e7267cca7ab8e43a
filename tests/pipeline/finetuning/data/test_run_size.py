"""What a run will see, counted before it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data import run_size as module
from pipeline.finetuning.data.augmented_files import digest, read_index
from pipeline.finetuning.data.batches import IGNORED, IndexedBatches
from pipeline.finetuning.data.examples import ExampleEncoder
from pipeline.finetuning.data.run_size import padding, run_size
from pipeline.finetuning.data.tokenizing import prepare
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, rows, write

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    folder = tmp_path_factory.mktemp("size")
    base_model(folder / "base")
    made = rows(32)
    made[10]["tool_names"] = ["MT", "QA"]
    made[4] |= {"plain": made[5]["plain"]}
    write(folder / "augmented", [made[:20], made[20:]])
    values = {"sequence_length": 48, "max_steps": 8, "held_out": 6, "mask_results": True, "seed": 2}
    return configuration(folder, **values)


@pytest.mark.parametrize("packing", [False, True])
def test_the_numbers_are_those_of_the_batches(config: FinetuneConfig, packing: bool) -> None:
    config = config.model_copy(update={"packing": packing})
    train = load_examples(config, AutoTokenizer.from_pretrained(config.model.path)).train
    size = run_size(config, read_index(config.data))
    tokens = size.tokens
    assert tokens is not None
    assert tokens.exact
    assert (size.trained_on, size.held_out) == (len(train), 6)
    assert size.trained_on + size.held_out + size.equal_to_held_out == 32
    assert size.epochs == 8 * 8 / len(train)
    assert tokens.per_epoch == sum(len(train[index]) for index in range(len(train)))
    assert tokens.truncated == train.truncated > 0
    of_workers = [IndexedBatches(train, config, rank) for rank in range(2)]
    of_steps = [[batches.batch(step).micro_batches for batches in of_workers] for step in range(1, 9)]
    positions = sum(rows_.ids.size for step in of_steps for own in step for rows_ in own)
    predicted = sum((rows_.labels != IGNORED).sum() for step in of_steps for own in step for rows_ in own)
    seen = [
        text_id for step in of_steps for own in step for r in own for row in r.text_ids for text_id in row
    ]
    index_of = {int(text_id): index for index, text_id in enumerate(train.text_ids)}
    used = np.array([index_of[text_id] for text_id in seen])
    assert predicted == train.predicted_tokens(used)
    assert tokens.predicted == train.predicted_tokens(np.arange(len(train)))
    found = tokens.packed if packing else tokens.unpacked
    assert found.positions == positions / 8
    assert found.padding == pytest.approx(1 - train.lengths[used].sum() / positions)
    assert found.forwards == np.mean([len(own) for own, _ in of_steps])
    assert (
        found.slowest
        == sum(max(a.ids.size, b.ids.size) for s in of_steps for a, b in zip(*s, strict=True)) / 8
    )


def test_the_lines_name_everything(config: FinetuneConfig) -> None:
    lines = dict(run_size(config, read_index(config.data)).lines())
    assert list(lines) == ["texts", "calls", "epochs", "tokens", "padding"]
    assert lines["texts"] == "25 to train on, 6 held out, 1 equal to those"
    assert lines["calls"] == "Calculator in 24, MT in 1, QA in 1, none in 0"
    assert lines["epochs"] == "8 steps of 8 texts of 'text' are 2.56 epochs"
    assert "about" not in lines["tokens"]
    assert "with packing" in lines["padding"]
    plain = config.model_copy(update={"column": "plain", "packing": True})
    lines = dict(run_size(plain, read_index(config.data)).lines())
    assert list(lines) == ["texts", "epochs", "tokens", "padding"]
    assert "without packing" in lines["padding"]


def test_a_large_c_star_is_sampled(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = run_size(config, read_index(config.data)).tokens
    monkeypatch.setattr(module, "_SAMPLE", 13)
    size = run_size(config, read_index(config.data))
    assert exact is not None
    assert size.tokens is not None
    assert not size.tokens.exact
    assert size.tokens.per_epoch == pytest.approx(exact.per_epoch, rel=0.1)
    assert dict(size.lines())["tokens"].startswith("about ")


def test_kept_tokens_are_counted_and_not_made_again(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"tokens": tmp_path / "tokens"})
    index = read_index(config.data)
    expected = run_size(config, index)
    prepare(config, AutoTokenizer.from_pretrained(config.model.path), digest(config.data), index)
    monkeypatch.setattr(ExampleEncoder, "batch", None)
    monkeypatch.setattr(module, "_SAMPLE", 13)
    assert run_size(config, index) == expected


def test_without_a_model_the_texts_are_counted(config: FinetuneConfig) -> None:
    missing = config.model_copy(update={"model": config.model.model_copy(update={"path": "org/name"})})
    size = run_size(missing, read_index(config.data), count_tokens=False)
    assert [name for name, _ in size.lines()] == ["texts", "calls", "epochs"]


def test_packing_levels_the_workers() -> None:
    """Eight workers, texts of very different lengths: the longest no longer hold the others up."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.7, 0.8, 5_000), 2, 1_024).astype(np.int64)
    config = FinetuneConfig(max_steps=20)
    unpacked, packed = (
        padding(lengths, config.model_copy(update={"packing": packing})) for packing in (False, True)
    )
    assert packed.padding < 0.03 < unpacked.padding
    assert packed.slowest < 0.7 * unpacked.slowest
