"""Train the demo's translator: German to English, with a small model of NLLB's architecture.

    python -m demo.train_translator --output runs/translator          # resumes where it stopped
    python -m demo.train_translator --output runs/translator --export demo/models/translator
    python -m demo.train_translator --evaluate demo/models/translator # on sentences that were not trained on

The result is a small version of facebook/nllb-200-distilled-600M: M2M100ForConditionalGeneration
with an NllbTokenizer, whose only languages are ``deu_Latn`` and ``eng_Latn``.
tools_service/tools/mt.py loads both. One sentence in twenty, selected by its hash, is held out from
training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

from demo import german, training
from demo.german import Phrase
from tools_service.config import MTConfig
from tools_service.contract.tool import ToolInput
from tools_service.tools.languages import ENGLISH
from tools_service.tools.mt import MT
from tools_service.tools.seq2seq import Ids

GERMAN = "deu_Latn"
VOCABULARY = 1_600
PHRASES_PER_STEP = 128
PAD, EOS = 1, 2  # NLLB's


def held_out(phrase: Phrase) -> bool:
    """Whether this sentence is held out from training."""
    return hashlib.blake2b(phrase.german.encode(), digest_size=1).digest()[0] % 20 == 0


def phrases(rng: Random, *, held: bool) -> Iterator[Phrase]:
    """Endless sentences: those that are held out (`held`), or those for training."""
    while True:
        phrase = german.sentence(rng)
        if held_out(phrase) == held:
            yield phrase


def train_tokenizer(seed: int = 0, count: int = 8_000) -> NllbTokenizer:
    """Train a tokenizer like NLLB's (BPE over words marked with ▁) on phrases of both languages."""
    rng = Random(seed)
    texts = [text for _ in range(count) for text in _both(german.sentence(rng))]
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    # No merge across punctuation, so that a word is the same token at the end of a sentence.
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted({letter for text in texts for letter in text + text.lower() + text.upper()})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    trained = json.loads(inner.to_str())["model"]
    return NllbTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        extra_special_tokens=[GERMAN, ENGLISH],
        src_lang=GERMAN,
    )


def _both(phrase: Phrase) -> tuple[str, str]:
    return phrase.german, phrase.english


def architecture(vocabulary: int) -> M2M100Config:
    """The model: 2 encoder and 2 decoder layers of width 128."""
    return M2M100Config(
        vocab_size=vocabulary,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
    )


class Batches:
    """Endless batches of encoded pairs (German ids, English ids) of similar length."""

    def __init__(self, tokenizer: NllbTokenizer, seed: int) -> None:
        self._tokenizer, self._rng = tokenizer, Random(seed)

    def __iter__(self) -> Iterator[list[tuple[Ids, Ids]]]:
        source = phrases(self._rng, held=False)
        while True:
            drawn = [self._varied(next(source)) for _ in range(8 * PHRASES_PER_STEP)]
            foreign = self._encode(GERMAN, [phrase.german for phrase in drawn])
            english = self._encode(ENGLISH, [phrase.english for phrase in drawn])
            pool = sorted(zip(foreign, english, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
            batches = [pool[at : at + PHRASES_PER_STEP] for at in range(0, len(pool), PHRASES_PER_STEP)]
            self._rng.shuffle(batches)
            yield from batches

    def _varied(self, phrase: Phrase) -> Phrase:
        """One in ten without its full stop, because the input of a call may lack it."""
        if self._rng.random() < 0.1:
            return Phrase(phrase.german.rstrip("."), phrase.english.rstrip("."))
        return phrase

    def _encode(self, language: str, texts: list[str]) -> list[Ids]:
        self._tokenizer.src_lang = language
        return self._tokenizer(texts).input_ids


def loss_of(
    model: M2M100ForConditionalGeneration, batch: list[tuple[Ids, Ids]]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of the English tokens (nats); number of tokens of both sides with padding."""
    device = model.device
    ids = pad_sequence([torch.tensor(row) for row, _ in batch], True, PAD).to(device)
    labels = pad_sequence([torch.tensor(row) for _, row in batch], True, -100).to(device)
    # The decoder starts with </s>, then the language, as generation with a forced first token does.
    start = torch.full_like(labels[:, :1], EOS)
    fed = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] < 0, PAD)], dim=1)
    logits = model(input_ids=ids, attention_mask=(ids != PAD).long(), decoder_input_ids=fed).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return loss, {"tokens": ids.numel() + labels.numel()}


def exact_share(folder: Path, count: int) -> float:
    """The share of `count` held-out sentences that the tool translates exactly."""
    source = phrases(Random("held-out sentences"), held=True)
    sentences = [next(source) for _ in range(count)]
    tool = MT(MTConfig(model=str(folder), device="cpu"))
    answers = tool([ToolInput(phrase.german) for phrase in sentences])
    return sum(a.result == phrase.english for a, phrase in zip(answers, sentences, strict=True)) / count


def main() -> None:
    """Command line."""
    parser = training.command_line(__doc__, "runs/translator", 1_500)
    parser.add_argument("--evaluate", type=Path, help="only measure the translator in this folder")
    args = parser.parse_args()
    if args.evaluate:
        share = exact_share(args.evaluate, 1_000)
        print(f"{share:.1%} of 1,000 held-out sentences translated exactly")
        return
    tokenizer = training.tokenizer_of(args.output, train_tokenizer)
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(architecture(len(tokenizer)))
    trainer = training.Trainer(model, args.steps, args.device)
    training.run(trainer, tokenizer, args, lambda seed: Batches(tokenizer, seed), loss_of)


if __name__ == "__main__":
    main()
