"""A share of plain texts in C*, and what reads C* with them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.fixtures.small_models import tokenizer
from bench.fixtures.small_training import load_examples
from pipeline.augmentation.merge import MergeManifest, merge, merge_problem
from pipeline.augmentation.plain_texts import plain_texts, plain_texts_for
from pipeline.base.config import ExportConfig, MergeConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.records import Annotation, Document, Text
from pipeline.exporting.run import export
from pipeline.report.html.augmented_section import augmented_section
from pipeline.report.losses import merge_losses
from pipeline.storage.card import CARD
from pipeline.storage.row_files import ROWS, read_rows
from tests.pipeline.augmentation.test_merge import annotated, annotations, call

pytestmark = pytest.mark.unit

WITH = [annotated(n, f"text {n} with a call", call("QA", 5, 2.0)) for n in range(12)]
BELOW = [annotated(n, f"text {n} below", call("QA", 5, 0.5, l_call=None)) for n in range(20, 30)]
WITHOUT = [annotated(n, f"text {n} without") for n in range(40, 60)]
LEFT_OUT = [
    Annotation(Text(80, Document("f"), "skipped text"), "skipped", "short: 1"),
    Annotation(Text(81, Document("f"), "failed text"), "failed", "E: x"),
]


def merged(
    tmp_path: Path, found: list[Annotation], name: str = "c", **options: Any
) -> tuple[list[dict[str, Any]], MergeManifest]:
    source = annotations(tmp_path / f"annotations-{name}", found)
    manifest = merge(MergeConfig(annotations=(source,), output=tmp_path / name, **options))
    return pq.read_table(tmp_path / name / ROWS).to_pylist(), manifest


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.25, 4), (0.5, 12), (0.7, 28)])
def test_the_share_is_of_all_texts(tmp_path: Path, share: float, number: int) -> None:
    rows, manifest = merged(tmp_path, [*WITH, *BELOW, *WITHOUT, *LEFT_OUT], plain_share=share)
    plain = [row for row in rows if not row["tool_names"]]
    assert len(plain) == manifest.plain_texts == plain_texts_for(share, 12) == number
    assert len(rows) == manifest.texts == 12 + number
    assert len(plain) / len(rows) == pytest.approx(share)
    assert all(row["text"] == row["plain"] for row in plain)
    assert {row["text_id"] for row in plain} <= {one.text.text_id for one in (*BELOW, *WITHOUT)}
    assert [row["text_id"] for row in rows] == sorted(row["text_id"] for row in rows)
    assert merge_problem(tmp_path / "c") is None


def test_texts_with_calls_are_those_without_the_option(tmp_path: Path) -> None:
    rows, _ = merged(tmp_path, [*WITH, *WITHOUT], plain_share=0.5)
    alone, _ = merged(tmp_path, [*WITH, *WITHOUT], name="d")
    assert [row for row in rows if row["tool_names"]] == alone


def test_a_text_whose_calls_a_cap_leaves_out_is_no_plain_text(tmp_path: Path) -> None:
    rows, manifest = merged(tmp_path, [*WITH, *WITHOUT[:5]], max_examples=4, plain_share=0.5)
    plain = {row["text_id"] for row in rows if not row["tool_names"]}
    assert len(plain) == manifest.plain_texts == 4
    assert plain <= {one.text.text_id for one in WITHOUT}


def test_too_few_plain_texts_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, manifest = merged(tmp_path, [*WITH, *WITHOUT[:3], *LEFT_OUT], plain_share=0.5)
    assert manifest.plain_texts == 3
    sentence = "C* has 3 of the 12 texts without a call that --plain-share asks for"
    assert sentence in caplog.text
    assert any(sentence in line for line in merge_losses(manifest))


def test_a_fulfilled_share_is_no_loss(tmp_path: Path) -> None:
    _, manifest = merged(tmp_path, [*WITH, *WITHOUT], plain_share=0.5)
    assert not [line for line in merge_losses(manifest) if "plain" in line]


def test_the_choice_depends_on_the_seed_and_not_on_the_files(tmp_path: Path) -> None:
    found = [*WITH, *BELOW, *WITHOUT]
    chosen = []
    for name, seed, files in (("a", 0, 1), ("b", 0, 5), ("c", 1, 1)):
        random.Random(files).shuffle(found)
        source = annotations(tmp_path / f"from-{name}", found, files=files)
        merge(MergeConfig(annotations=(source,), output=tmp_path / name, plain_share=0.4, seed=seed))
        chosen.append((tmp_path / name / ROWS / "00000.parquet").read_bytes())
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_a_text_of_two_annotations_is_chosen_once_and_not_if_one_of_them_keeps_a_call(tmp_path: Path) -> None:
    plain = [annotated(n, "text") for n in range(6)]
    called = [annotated(0, "text", call("QA", 0, 2.0)), *plain[1:]]
    folders = (annotations(tmp_path / "a", plain), annotations(tmp_path / "b", called))
    output = tmp_path / "c"
    manifest = merge(MergeConfig(annotations=folders, output=output, same_texts="unite", plain_share=0.9))
    rows = pq.read_table(output / ROWS).to_pylist()
    assert [(row["text_id"], row["tool_names"]) for row in rows] == [
        (0, ["QA"]),
        *((n, []) for n in range(1, 6)),
    ]
    assert manifest.plain_texts == 5


def test_memory_holds_the_chosen_texts_alone(tmp_path: Path) -> None:
    """The lowest ranks of a stream, in whatever order they come."""
    source = annotations(tmp_path / "a", [annotated(n, f"text {n}") for n in range(200)])
    nothing = np.empty(0, np.int64)
    some = {row["text_id"] for row in plain_texts([source], nothing, 10, seed=0)}
    more = {row["text_id"] for row in plain_texts([source], nothing, 50, seed=0)}
    assert len(some) == 10
    assert some < more
    assert not list(plain_texts([source], nothing, 0, seed=0))


def test_what_reads_augmented_texts_copes_with_plain_ones(tmp_path: Path) -> None:
    rows, manifest = merged(tmp_path, [*WITH, *WITHOUT], plain_share=0.4)
    assert manifest.plain_texts == 8
    assert f"- texts without a call: {manifest.plain_texts}" in (tmp_path / "c" / CARD).read_text()
    section = augmented_section(tmp_path / "c")
    assert any(fact.name == "texts without a call" and fact.value == "8" for fact in section.facts)
    assert len(section.examples) == 12

    config = FinetuneConfig(data=tmp_path / "c", held_out=4, workers=1, batch_size=8, sequence_length=64)
    examples = load_examples(config, tokenizer("bytes"))
    assert len(examples.train) + len(examples.held_out) == len(rows) == 20

    for number, form in enumerate(("text", "chat", "sharegpt")):
        output = tmp_path / str(number)
        made = export(ExportConfig(data=tmp_path / "c", format=form, file_type="parquet", output=output))
        assert (made.texts, made.tools["QA"]) == (20, 12)
    written = {row["text_id"]: row["text"] for row in read_rows(tmp_path / "0", ["text_id", "text"])}
    assert written == {row["text_id"]: row["text"] for row in rows}
    [turns] = [
        row["messages"]
        for row in read_rows(tmp_path / "1", ["text_id", "messages"])
        if row["text_id"] == next(row["text_id"] for row in rows if not row["tool_names"])
    ]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
