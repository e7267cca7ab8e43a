"""The trainings of the demo's small models: what they may see, and that they go on where they stopped."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch

from demo import train_reader, train_translator, training
from demo.train_reader import PASSAGES, READER, example, known, loss_of, whole_article
from demo.train_translator import held_out, phrases
from tests.tools_service.small_seq2seq import byte_level_tokenizer, t5
from tools_service.tools.qa import encode_text, reader_texts

pytestmark = pytest.mark.unit


def test_the_reader_never_sees_anybody_of_the_encyclopedia() -> None:
    rng = Random(0)
    examples = [example(rng) for _ in range(500)] + [whole_article(rng) for _ in range(50)]
    assert not {passage.title for one in examples for passage in one.passages} & known()


def test_an_example_says_its_answer_in_a_passage_on_its_subject_or_has_none() -> None:
    rng = Random(1)
    examples = [example(rng) for _ in range(500)]
    for one in examples:
        about = [passage for passage in one.passages if passage.title in one.question]
        assert 1 <= len(one.passages) <= PASSAGES
        assert [one.answer in passage.text for passage in about] == [True] * bool(one.answer), one
    assert 10 < sum(not one.answer for one in examples) < 100


def test_a_question_fits_what_the_reader_is_given() -> None:
    rng, tokenizer = Random(2), train_reader.train_tokenizer(examples=300)
    lengths = [
        len(encode_text(tokenizer, part, 10_000))
        for one in (example(rng) for _ in range(100))
        for part in reader_texts(READER, one.question, one.passages)
    ]
    assert max(lengths) < READER.max_passage_tokens


def test_the_trainings_loss_is_that_of_reading_one_by_one() -> None:
    """Every passage encoded alone, every question decoded alone: the same loss as the padded batch."""
    rng, tokenizer = Random(3), byte_level_tokenizer(["question: Where? title: A context: She lives in B."])
    batch = []
    for one in (example(rng, whole=0.0) for _ in range(3)):
        read = reader_texts(READER, one.question, one.passages)
        batch.append(([encode_text(tokenizer, text, 60) for text in read], tokenizer(one.answer).input_ids))
    model = t5(len(tokenizer)).eval()
    with torch.inference_mode():
        loss, values = loss_of(model, batch)
        total = 0.0
        for read, answer in batch:
            states = [model.encoder(input_ids=torch.tensor([part])).last_hidden_state for part in read]
            labels = torch.tensor([answer])
            fused = (torch.cat(states, dim=1),)
            total += model(encoder_outputs=fused, labels=labels).loss.item() * len(answer)
    assert loss.item() == pytest.approx(total / sum(len(answer) for _, answer in batch), rel=1e-5)
    assert values["tokens"] >= sum(len(part) for read, _ in batch for part in read)


def test_held_out_sentences_are_apart_from_those_trained_on() -> None:
    trained = {phrase.german for phrase in islice(phrases(Random(0), kept=False), 2_000)}
    kept = list(islice(phrases(Random(0), kept=True), 100))
    assert not trained & {phrase.german for phrase in kept}
    assert all(held_out(phrase) for phrase in kept)


def test_the_translators_tokenizer_knows_every_word() -> None:
    tokenizer = train_translator.train_tokenizer(count=2_000)
    for phrase in islice(phrases(Random(4), kept=True), 100):
        for text in (phrase.german, phrase.english):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_checkpoint_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    ids, labels = torch.randint(2, 300, (3, 12)), torch.randint(2, 300, (3, 5))

    def step(trainer: training.Trainer) -> None:
        trainer.update(trainer.model(input_ids=ids, labels=labels).loss)

    straight = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    for _ in range(3):
        step(straight)
    broken = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    step(broken)
    broken.save(tmp_path / "checkpoint.pt")
    resumed = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    resumed.load(tmp_path / "checkpoint.pt")
    for _ in range(2):
        step(resumed)
    assert resumed.step == straight.step == 3
    assert all(torch.equal(resumed.master[name], straight.master[name]) for name in straight.master)
    assert not torch.equal(straight.master["shared.weight"], broken.master["shared.weight"])
