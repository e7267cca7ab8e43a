"""The trainings of the demo's small models: their data, their losses, and resuming."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch

from demo import train_reader, train_translator, training
from demo.train_reader import PASSAGES, READER, encyclopedia_titles, example, loss_of, whole_article
from demo.train_translator import held_out, phrases
from tests.tools_service.small_seq2seq import byte_level_tokenizer, t5
from tools_service.tools.qa import encode_text, reader_texts

pytestmark = pytest.mark.unit


def test_no_passage_is_about_an_entity_of_the_encyclopedia() -> None:
    rng = Random(0)
    examples = [example(rng) for _ in range(500)] + [whole_article(rng) for _ in range(50)]
    assert not {passage.title for each in examples for passage in each.passages} & encyclopedia_titles()


def test_the_answer_is_in_a_passage_about_the_subject_or_is_empty() -> None:
    rng = Random(1)
    examples = [example(rng) for _ in range(500)]
    for each in examples:
        about = [passage for passage in each.passages if passage.title in each.question]
        assert 1 <= len(each.passages) <= PASSAGES
        assert [each.answer in passage.text for passage in about] == [True] * bool(each.answer), each
    assert 10 < sum(not each.answer for each in examples) < 100


def test_a_question_fits_the_readers_input() -> None:
    rng, tokenizer = Random(2), train_reader.train_tokenizer(examples=300)
    lengths = [
        len(encode_text(tokenizer, part, 10_000))
        for each in (example(rng) for _ in range(100))
        for part in reader_texts(READER, each.question, each.passages)
    ]
    assert max(lengths) < READER.max_passage_tokens


def test_the_batched_loss_is_that_of_single_examples() -> None:
    """Each passage encoded alone and each question decoded alone give the loss of the padded batch."""
    rng, tokenizer = Random(3), byte_level_tokenizer(["question: Where? title: A context: She lives in B."])
    batch = []
    for each in (example(rng, article_share=0.0) for _ in range(3)):
        texts = reader_texts(READER, each.question, each.passages)
        batch.append(([encode_text(tokenizer, text, 60) for text in texts], tokenizer(each.answer).input_ids))
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


def test_held_out_sentences_are_not_trained_on() -> None:
    trained = {phrase.german for phrase in islice(phrases(Random(0), held=False), 2_000)}
    held = list(islice(phrases(Random(0), held=True), 100))
    assert not trained & {phrase.german for phrase in held}
    assert all(held_out(phrase) for phrase in held)


def test_the_translators_tokenizer_knows_every_word() -> None:
    tokenizer = train_translator.train_tokenizer(count=2_000)
    for phrase in islice(phrases(Random(4), held=True), 100):
        for text in (phrase.german, phrase.english):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    ids, labels = torch.randint(2, 300, (3, 12)), torch.randint(2, 300, (3, 5))

    def step(trainer: training.Trainer) -> None:
        trainer.update(trainer.model(input_ids=ids, labels=labels).loss)

    uninterrupted = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    for _ in range(3):
        step(uninterrupted)
    interrupted = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    step(interrupted)
    interrupted.save(tmp_path / "checkpoint.pt")
    resumed = training.Trainer(t5(300), 10, "cpu", {".q.weight": 0.5})
    resumed.load(tmp_path / "checkpoint.pt")
    for _ in range(2):
        step(resumed)
    assert resumed.step == uninterrupted.step == 3
    assert all(torch.equal(resumed.master[name], uninterrupted.master[name]) for name in uninterrupted.master)
    assert not torch.equal(uninterrupted.master["shared.weight"], interrupted.master["shared.weight"])
