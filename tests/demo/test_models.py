"""The committed reader and translator answer held-out items, through the tools' own classes."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from demo import facts, generate
from demo.train_reader import READER
from demo.train_translator import phrases
from tools_service.config import MTConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.indexing.build import ensure_index
from tools_service.tools.mt import MT
from tools_service.tools.qa import QA

pytestmark = pytest.mark.unit

DEMO = Path(generate.__file__).parent
MODELS = DEMO / "models"


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QA:
    source = (str(DEMO / "encyclopedia" / "articles.jsonl"),)
    search = WikiSearchConfig(source=source, index=tmp_path_factory.mktemp("index") / "index")
    ensure_index(search)
    return QA(READER.model_copy(update={"model": str(MODELS / "reader"), "device": "cpu"}), search)


@pytest.fixture(scope="module")
def mt() -> MT:
    return MT(MTConfig(model=str(MODELS / "translator"), device="cpu"))


def test_the_reader_answers_questions_about_the_encyclopedia(qa: QA) -> None:
    rng = Random(5)
    asked = [
        (rng.choice(facts.QUESTIONS[name]).format(s=entity.name), value)
        for entity in generate.World().held_out[:20]
        for name, value in entity.values.items()
    ]
    answers = qa([ToolInput(question) for question, _ in asked])
    right = sum(answer.result == value for answer, (_, value) in zip(answers, asked, strict=True))
    assert right / len(asked) > 0.9


def test_the_translator_translates_held_out_sentences(mt: MT) -> None:
    unseen = list(islice(phrases(Random(7), held=True), 40))
    answers = mt([ToolInput(phrase.german) for phrase in unseen])
    right = sum(answer.result == phrase.english for answer, phrase in zip(answers, unseen, strict=True))
    assert right / len(unseen) > 0.95


def test_the_translator_translates_the_questions_sentences(mt: MT) -> None:
    lines = (DEMO / "questions" / "mt.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][:40]
    german = [re.findall(r"[:?] ([A-ZÄÖÜ][^.]*\.) ", row["prompt"])[-1] for row in rows]
    answers = mt([ToolInput(sentence) for sentence in german])
    right = sum(answer.result == row["answers"][0] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) > 0.95


def test_the_translator_refuses_other_languages(mt: MT) -> None:
    answers = mt([ToolInput("Where is the station, please?"), ToolInput("Où est la gare, s'il vous plaît ?")])
    assert answers == [
        ToolResult(reason="already English"),
        ToolResult(reason="language not known to the model"),
    ]


def test_the_models_weights_are_small_and_safetensors() -> None:
    weights = [file.stat().st_size for file in MODELS.rglob("*.safetensors")]
    assert max(weights) < 16 * 2**20
    assert sum(weights) < 40 * 2**20
    assert not [file for file in MODELS.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
