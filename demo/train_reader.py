"""Train the demo's reader: a small T5 that answers questions from passages.

    python -m demo.train_reader --output runs/reader            # resumes where it stopped
    python -m demo.train_reader --output runs/reader --export demo/models/reader
    python -m demo.train_reader --evaluate demo/models/reader   # on held-out worlds, and on the encyclopedia

An example is a question about an entity invented for it, and the passages that a search would
return: the right article and others that share a name or mention the entity, or only such others,
and then the answer is empty. No passage's title is an entity of the demo's encyclopedia, so the
model cannot memorise answers.

Answers of two tokens teach a model very slowly to copy. So the first steps ask for whole articles,
and later one question in four does. docs/log.md has the result without this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

import torch
from tokenizers import processors
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from demo import facts, generate, training
from demo.facts import Entity
from tools_service.config import QAConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput
from tools_service.indexing.build import ensure_index
from tools_service.retrieval.passages import Passage
from tools_service.tools.qa import QA, encode_text, reader_texts
from tools_service.tools.seq2seq import Ids, Seq2Seq, load_seq2seq

# The reader's settings in the demo. The examples have exactly this form, but up to PASSAGES passages.
READER = QAConfig(model="demo/models/reader", reader="fid", passages=1, max_passage_tokens=128)
PASSAGES = 3
VOCABULARY = 1_024
EXAMPLES_PER_STEP = 48
COPYING_STEPS, ARTICLES_PER_STEP = 200, 128  # the first steps, with whole articles
PAD, EOS = "<pad>", "</s>"
ABSENT_SHARE = 0.1  # of the questions have no answer in the passages
ARTICLE_SHARE = 0.25  # of the examples ask for the whole article

REWORDED: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "Which town is the birthplace of {s}?",
        "Where did {s} come into the world?",
        "Where does {s} come from?",
        "Tell me where {s} was born.",
    ),
    "year": (
        "When did {s} come into the world?",
        "{s} was born in which year?",
        "What year of birth does {s} have?",
    ),
    "home": (
        "Which town is the home of {s}?",
        "Where is the home of {s}?",
        "Tell me where {s} lives.",
        "Where does {s} have a house?",
    ),
    "trade": ("What is {s} by trade?", "How does {s} earn a living?", "Which profession does {s} have?"),
    "instrument": ("What instrument does {s} play?", "Which instrument did {s} learn?"),
    "river": (
        "What river flows through {s}?",
        "On which river is {s}?",
        "Which river crosses {s}?",
        "Which river does {s} lie on?",
    ),
    "founded": ("Which year was {s} founded in?", "From when does {s} date?", "How long has {s} been there?"),
    "mayor": ("What is the name of the mayor of {s}?", "Who governs {s}?", "Tell me the mayor of {s}."),
    "product": ("What is made in {s}?", "What can you buy in {s}?", "Which goods does {s} sell?"),
}


ABOUT = ("What is known about {s}?", "Tell me about {s}.", "What does the article on {s} say?")


@dataclass(frozen=True)
class Example:
    """A question, passages, and the answer, which is empty if the passages do not contain it."""

    question: str
    passages: tuple[Passage, ...]
    answer: str


@cache
def encyclopedia_titles() -> frozenset[str]:
    """The titles of the demo's encyclopedia."""
    return frozenset(generate.World().articles)


def new_entity(rng: Random, kind: str | None = None) -> Entity:
    """A person or a town that is not in the demo's encyclopedia."""
    draw = {None: facts.entity, "person": facts.person, "town": facts.town}[kind]
    while (drawn := draw(rng)).name in encyclopedia_titles():
        pass
    return drawn


def example(rng: Random, article_share: float = ARTICLE_SHARE, max_passages: int = PASSAGES) -> Example:
    """A question for an attribute or the article, and at most `max_passages` passages."""
    subject = new_entity(rng)
    count = rng.randint(1, max_passages) if rng.random() < 0.7 else max_passages
    entities = [distractor(rng, subject) for _ in range(count)]
    entities.insert(0, subject)
    articles = [facts.article(entity, rng) for entity in entities]
    passages = [Passage(entity.name, text) for entity, text in zip(entities, articles, strict=True)]
    if rng.random() < article_share:
        question, answer, absent = rng.choice(ABOUT), articles[0], False
    else:
        attribute = rng.choice(list(subject.values))
        question = rng.choice(facts.QUESTIONS[attribute] + REWORDED[attribute])
        absent = rng.random() < ABSENT_SHARE
        answer = "" if absent else subject.values[attribute]
    read = passages[1:] if absent else passages[:count]
    rng.shuffle(read)
    return Example(question.format(s=subject.name), tuple(read), answer)


def whole_article(rng: Random) -> Example:
    """A question for a whole article, and this article."""
    subject = new_entity(rng)
    article = facts.article(subject, rng)
    question = rng.choice(ABOUT).format(s=subject.name)
    return Example(question, (Passage(subject.name, article),), article)


def distractor(rng: Random, subject: Entity) -> Entity:
    """Another entity that a search for `subject` may return: a namesake, a related or a random one."""
    kind = rng.random()
    if kind < 0.4:
        return _namesake(rng, subject)
    if kind > 0.7:
        return new_entity(rng)
    if subject.kind == "town":
        other = new_entity(rng, "person")
        return replace(other, values=other.values | {rng.choice(("birthplace", "home")): subject.name})
    other = new_entity(rng, "town")
    return replace(other, values=other.values | {"mayor": subject.name})


def _namesake(rng: Random, subject: Entity) -> Entity:
    other = new_entity(rng, subject.kind)
    if subject.kind == "town":
        return other
    first, last = subject.name.split()
    other_first, other_last = other.name.split()
    name = f"{first} {other_last}" if rng.random() < 0.5 else f"{other_first} {last}"
    return other if name in encyclopedia_titles() or name == subject.name else replace(other, name=name)


def train_tokenizer(seed: int = 0, examples: int = 6_000) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on examples; an end token follows every text."""
    rng = Random(seed)

    def corpus() -> Iterator[str]:
        for _ in range(examples):
            drawn = example(rng)
            yield from reader_texts(READER, drawn.question, drawn.passages[:1])
        yield from (f" {number} {number:02d}" for number in range(100) for _ in range(100))

    tokenizer = training.byte_level_bpe(corpus(), VOCABULARY, [PAD, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def architecture() -> T5Config:
    """The model: 4 encoder and 2 decoder layers of width 128, 1.5 million parameters."""
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def untrained() -> T5ForConditionalGeneration:
    """The model before training, with three heads that already attend to neighbouring tokens.

    T5's bias for a distance starts near zero and grows slowly, but copying needs a head that
    attends to the previous token. So one head each prefers the previous token, the next one, and
    the one before the previous.
    """
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(architecture())
    with torch.no_grad():
        for stack, buckets in ((model.encoder, (1, 17, 2)), (model.decoder, (1, 0, 2))):
            bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
            for head, bucket in enumerate(buckets):
                bias[bucket, head] = 4.0
    return model


Encoded = tuple[list[Ids], Ids]  # the encoder's inputs, one per passage; the answer with its end token


class Batches:
    """Endless batches of similar length, after `step` steps. The first ask for articles."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step: int) -> None:
        self._tokenizer, self._rng, self._step = tokenizer, Random(step + 1), step

    def __iter__(self) -> Iterator[list[Encoded]]:
        for _ in range(self._step, COPYING_STEPS):
            yield [self._encode(whole_article(self._rng)) for _ in range(ARTICLES_PER_STEP)]
        while True:
            pool = [self._encode(example(self._rng)) for _ in range(16 * EXAMPLES_PER_STEP)]
            pool.sort(key=lambda encoded: (len(encoded[1]) > 16, max(map(len, encoded[0]))))
            batches = [pool[at : at + EXAMPLES_PER_STEP] for at in range(0, len(pool), EXAMPLES_PER_STEP)]
            self._rng.shuffle(batches)
            yield from batches

    def _encode(self, drawn: Example) -> Encoded:
        texts = reader_texts(READER, drawn.question, drawn.passages)
        ids = [encode_text(self._tokenizer, text, READER.max_passage_tokens) for text in texts]
        return ids, self._tokenizer(drawn.answer).input_ids


def loss_of(model: T5ForConditionalGeneration, batch: list[Encoded]) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of the answers' tokens (nats), and the number of encoder tokens, padding included.

    Fusion in decoder: the passages of an example are encoded separately and concatenated for the
    decoder.
    """
    inputs = [torch.tensor(part) for passages, _ in batch for part in passages]
    ids = pad_sequence(inputs, batch_first=True).to(model.device)  # [passages of all examples, T]
    encoded = model.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    states = iter(row[: len(part)] for row, part in zip(encoded, inputs, strict=True))
    fused = [torch.cat([next(states) for _ in passages]) for passages, _ in batch]
    mask = pad_sequence([torch.ones(len(each), dtype=torch.long) for each in fused], batch_first=True)
    labels = pad_sequence([torch.tensor(answer) for _, answer in batch], True, -100).to(model.device)
    logits = model(
        encoder_outputs=(pad_sequence(fused, batch_first=True),),
        attention_mask=mask.to(model.device),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
    ).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return loss, {"tokens": ids.numel()}


def exact_share(folder: Path, count: int, max_passages: int) -> float:
    """The share of `count` held-out examples that the reader in `folder` answers exactly.

    Inputs and outputs are processed as in the tool. Without an answer in the passages, an empty
    answer is correct.
    """
    rng = Random("held-out worlds")
    examples = [example(rng, article_share=0.0, max_passages=max_passages) for _ in range(count)]
    config = READER.model_copy(update={"model": str(folder), "device": "cpu"})
    model, tokenizer = load_seq2seq(config, "reader")
    inputs = [
        [
            encode_text(tokenizer, part, config.max_passage_tokens)
            for part in reader_texts(config, e.question, e.passages)
        ]
        for e in examples
    ]
    reader = Seq2Seq(model, tokenizer, max_batch_tokens=config.max_batch_tokens)
    answers = reader.generate(inputs, [config.max_answer_tokens] * count)
    return sum(answer == e.answer for answer, e in zip(answers, examples, strict=True)) / count


def encyclopedia_shares(folder: Path) -> Iterator[str]:
    """Lines that say how much the QA tool with the reader in `folder` answers exactly from the encyclopedia.

    Every fact about the entities of the demo's questions is asked for: in the pages' wordings, also
    with the best three passages instead of one, and in the wordings of the demo's questions.
    """
    source = (str(generate.HERE / "encyclopedia" / "articles.jsonl"),)
    known = [(each, *fact) for each in generate.World().held_out for fact in each.values.items()]
    with tempfile.TemporaryDirectory() as index:
        search = WikiSearchConfig(source=source, index=Path(index) / "index")
        ensure_index(search)
        for title, wordings, passages in (
            ("the pages' wordings", facts.QUESTIONS, 1),
            ("the pages' wordings", facts.QUESTIONS, PASSAGES),
            ("the demo questions' wordings", facts.HELD_OUT, 1),
        ):
            rng = Random("encyclopedia")
            asked = [
                (rng.choice(wordings[name]).format(s=entity.name), value)
                for entity, name, value in known
                if name in wordings
            ]
            config = {"model": str(folder), "device": "cpu", "passages": passages}
            answers = QA(READER.model_copy(update=config), search)([ToolInput(text) for text, _ in asked])
            right = sum(answer.result == value for answer, (_, value) in zip(answers, asked, strict=True))
            share = f"{right} of {len(asked)} questions ({right / len(asked):.1%})"
            yield f"encyclopedia, {title}, passages {passages}: {share} are right"


def main() -> None:
    """Command line."""
    parser = training.command_line(__doc__, "runs/reader", 1_700)
    parser.add_argument("--evaluate", type=Path, help="only measure the reader in this folder")
    args = parser.parse_args()
    if args.evaluate:
        for max_passages in (1, PASSAGES):
            share = exact_share(args.evaluate, 1_000, max_passages)
            passages = f"at most {max_passages} passages"
            print(f"{passages}: {share:.1%} of 1,000 questions about held-out worlds are right")
        for line in encyclopedia_shares(args.evaluate):
            print(line)
        return
    tokenizer = training.tokenizer_of(args.output, train_tokenizer)
    # T5 does not divide attention scores by the root of a head's size; q starts that much smaller.
    rate_scales = {".q.weight": architecture().d_kv ** -0.5}
    trainer = training.Trainer(untrained(), args.steps, args.device, rate_scales)
    training.run(trainer, tokenizer, args, lambda seed: Batches(tokenizer, seed - 1), loss_of)


if __name__ == "__main__":
    main()
