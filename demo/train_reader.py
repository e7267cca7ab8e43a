"""Train the demo's reader: a small T5 that reads passages for a question, as tools_service/tools/qa.py asks.

    python -m demo.train_reader --output runs/reader            # resumes where it stopped
    python -m demo.train_reader --output runs/reader --export demo/models/reader
    python -m demo.train_reader --evaluate demo/models/reader   # on held-out worlds

An example is a question about somebody made up for it and the passages that a search would bring: the right
article and others that share a name or mention the subject, or only such others, and then the answer is
empty. Nobody of the demo's encyclopedia is ever the title of a passage, so nothing can be known by heart.

An answer of two tokens teaches a model very slowly to copy. So the first steps ask for one whole article, and
one in four questions later on; docs/log.md says what happens without.
"""

from __future__ import annotations

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
from tools_service.config import QAConfig
from tools_service.retrieval.passages import Passage
from tools_service.tools.qa import encode_text, reader_texts
from tools_service.tools.seq2seq import Ids, Seq2Seq, load_seq2seq

# The reader's settings in the demo: its examples are put to it in exactly this form, but with up to PASSAGES.
READER = QAConfig(model="demo/models/reader", reader="fid", passages=1, max_passage_tokens=128)
PASSAGES = 3
VOCABULARY = 1_024
EXAMPLES_PER_STEP = 48
COPYING_STEPS, ARTICLES_PER_STEP = 200, 128  # the first steps
PAD, EOS = "<pad>", "</s>"
ABSENT = 0.1  # share of the questions that no passage answers
WHOLE = 0.25  # share of the examples that ask for the whole article

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
    """A question, passages, and what they say; an empty answer where they say nothing about it."""

    question: str
    passages: tuple[Passage, ...]
    answer: str


@cache
def known() -> frozenset[str]:
    """The names of the demo's encyclopedia."""
    return frozenset(generate.World().articles)


def stranger(rng: Random, kind: str | None = None) -> Entity:
    """Somebody, or a town, that the demo does not know."""
    draw = {None: facts.entity, "person": facts.person, "town": facts.town}[kind]
    while (drawn := draw(rng)).name in known():
        pass
    return drawn


def example(rng: Random, whole: float = WHOLE, most: int = PASSAGES) -> Example:
    """A question and at most `most` passages, in any order; the share `whole` asks for the article."""
    subject = stranger(rng)
    count = rng.randint(1, most) if rng.random() < 0.7 else most
    entities = [distractor(rng, subject) for _ in range(count)]
    articles = [facts.article(one, rng) for one in (subject, *entities)]
    passages = [Passage(one.name, text) for one, text in zip((subject, *entities), articles, strict=True)]
    if rng.random() < whole:
        question, answer, absent = rng.choice(ABOUT), articles[0], False
    else:
        attribute = rng.choice(list(subject.values))
        question = rng.choice(facts.QUESTIONS[attribute] + REWORDED[attribute])
        absent = rng.random() < ABSENT
        answer = "" if absent else subject.values[attribute]
    shown = passages[1:] if absent else passages[:count]
    rng.shuffle(shown)
    return Example(question.format(s=subject.name), tuple(shown), answer)


def whole_article(rng: Random) -> Example:
    """What is known about somebody, and the one article that says it."""
    subject = stranger(rng)
    article = facts.article(subject, rng)
    question = rng.choice(ABOUT).format(s=subject.name)
    return Example(question, (Passage(subject.name, article),), article)


def distractor(rng: Random, subject: Entity) -> Entity:
    """Who else a search for `subject` brings: a namesake, somebody related, anybody."""
    kind = rng.random()
    if kind < 0.4:
        return _namesake(rng, subject)
    if kind > 0.7:
        return stranger(rng)
    if subject.kind == "town":
        other = stranger(rng, "person")
        return replace(other, values=other.values | {rng.choice(("birthplace", "home")): subject.name})
    other = stranger(rng, "town")
    return replace(other, values=other.values | {"mayor": subject.name})


def _namesake(rng: Random, subject: Entity) -> Entity:
    other = stranger(rng, subject.kind)
    if subject.kind == "town":
        return other
    first, last = subject.name.split()
    other_first, other_last = other.name.split()
    name = f"{first} {other_last}" if rng.random() < 0.5 else f"{other_first} {last}"
    return other if name in known() or name == subject.name else replace(other, name=name)


def train_tokenizer(seed: int = 0, examples: int = 6_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over examples, an end token behind every text."""
    rng = Random(seed)

    def corpus() -> Iterator[str]:
        for _ in range(examples):
            one = example(rng)
            yield from reader_texts(READER, one.question, one.passages[:1])
        yield from (f" {number} {number:02d}" for number in range(100) for _ in range(100))

    tokenizer = training.byte_level_bpe(corpus(), VOCABULARY, [PAD, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def architecture() -> T5Config:
    """The model: 4 layers that read and 2 that write, width 128, 1.5 million parameters."""
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
    """The model before training. Its heads already look at neighbours.

    T5's bias for a distance begins near zero and grows slowly; copying needs a head that sees the token
    before. So one head each prefers the token before, the one after and the one before that.
    """
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(architecture())
    with torch.no_grad():
        for stack, buckets in ((model.encoder, (1, 17, 2)), (model.decoder, (1, 0, 2))):
            bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
            for head, bucket in enumerate(buckets):
                bias[bucket, head] = 4.0
    return model


Encoded = tuple[list[Ids], Ids]  # the passages' parts; the answer, with its end token


class Batches:
    """Endless batches of encoded examples of like length, the first of whole articles; `step` are done."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step: int) -> None:
        self._tokenizer, self._rng, self._step = tokenizer, Random(step + 1), step

    def __iter__(self) -> Iterator[list[Encoded]]:
        for _ in range(self._step, COPYING_STEPS):
            yield [self._encode(whole_article(self._rng)) for _ in range(ARTICLES_PER_STEP)]
        while True:
            pool = [self._encode(example(self._rng)) for _ in range(16 * EXAMPLES_PER_STEP)]
            pool.sort(key=lambda one: (len(one[1]) > 16, max(map(len, one[0]))))
            batches = [pool[at : at + EXAMPLES_PER_STEP] for at in range(0, len(pool), EXAMPLES_PER_STEP)]
            self._rng.shuffle(batches)
            yield from batches

    def _encode(self, one: Example) -> Encoded:
        read = reader_texts(READER, one.question, one.passages)
        ids = [encode_text(self._tokenizer, part, READER.max_passage_tokens) for part in read]
        return ids, self._tokenizer(one.answer).input_ids


def loss_of(model: T5ForConditionalGeneration, batch: list[Encoded]) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of the answers' tokens (nats), and the number of tokens that were read, padding included.

    Fusion in the decoder: an example's passages are encoded one by one, and one sequence for the decoder.
    """
    read = [torch.tensor(part) for ids, _ in batch for part in ids]
    ids = pad_sequence(read, batch_first=True).to(model.device)  # [passages of all examples, T]
    found = model.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    states = iter(row[: len(part)] for row, part in zip(found, read, strict=True))
    fused = [torch.cat([next(states) for _ in ids]) for ids, _ in batch]
    mask = pad_sequence([torch.ones(len(one), dtype=torch.long) for one in fused], batch_first=True)
    labels = pad_sequence([torch.tensor(answer) for _, answer in batch], True, -100).to(model.device)
    logits = model(
        encoder_outputs=(pad_sequence(fused, batch_first=True),),
        attention_mask=mask.to(model.device),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
    ).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return loss, {"tokens": ids.numel()}


def exact_share(folder: Path, count: int, most: int) -> float:
    """Share of `count` held-out examples, of at most `most` passages, that the reader in `folder` answers
    exactly.

    Put and read as the tool does. An example that no passage answers is right if nothing is answered.
    """
    rng = Random("held-out worlds")
    examples = [example(rng, whole=0.0, most=most) for _ in range(count)]
    config = READER.model_copy(update={"model": str(folder), "device": "cpu"})
    model, tokenizer = load_seq2seq(config, "reader")
    inputs = [
        [
            encode_text(tokenizer, part, config.max_passage_tokens)
            for part in reader_texts(config, o.question, o.passages)
        ]
        for o in examples
    ]
    reader = Seq2Seq(model, tokenizer, max_batch_tokens=config.max_batch_tokens)
    answers = reader.generate(inputs, [config.max_answer_tokens] * count)
    return sum(said == one.answer for said, one in zip(answers, examples, strict=True)) / count


def main() -> None:
    """Command line."""
    parser = training.command_line(__doc__, "runs/reader", 1_700)
    parser.add_argument("--evaluate", type=Path, help="only measure the reader in this folder")
    args = parser.parse_args()
    if args.evaluate:
        for most in (1, PASSAGES):
            share = exact_share(args.evaluate, 1_000, most)
            print(f"at most {most} passages: {share:.1%} of 1,000 questions about held-out worlds are right")
        return
    folder: Path = args.output / "tokenizer"
    if not folder.exists():
        train_tokenizer().save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    # T5 does not divide attention's scores by the root of a head's size; its q starts that much smaller.
    slower = {".q.weight": architecture().d_kv ** -0.5}
    trainer = training.Trainer(untrained(), args.steps, args.device, slower)
    training.run(trainer, tokenizer, args, lambda seed: Batches(tokenizer, seed - 1), loss_of)


if __name__ == "__main__":
    main()
