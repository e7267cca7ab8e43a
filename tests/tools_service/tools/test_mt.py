"""MT with a small model of NLLB's architecture that knows a few sentences of three languages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.fixtures.small_models import byte_level
from tests.tools_service.small_seq2seq import nllb, nllb_tokenizer, save, t5, teach
from tools_service.config import MTConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools import mt as translation
from tools_service.tools.mt import MT
from tools_service.tools.seq2seq import Seq2SeqError

pytestmark = pytest.mark.unit

TAUGHT = [
    ("deu_Latn", "Wo ist der Bahnhof?", "Where is the station?"),
    ("deu_Latn", "Der alte Hund schläft heute im Garten.", "The old dog sleeps in the garden today."),
    ("deu_Latn", "Wir warten.", "We wait."),
    ("fra_Latn", "Où est la gare, s'il vous plaît ?", "Where is the station, please?"),
    ("fra_Latn", "Nous attendons le train depuis midi.", "We have been waiting for the train since noon."),
    ("rus_Cyrl", "Где находится вокзал?", "Where is the station?"),
    ("rus_Cyrl", "Собака спит.", "The dog sleeps."),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    languages = sorted({language for language, _, _ in TAUGHT} | {"eng_Latn"})
    tokenizer = nllb_tokenizer([text for _, *texts in TAUGHT for text in texts], languages)

    def encode(language: str, text: str) -> list[int]:
        tokenizer.src_lang = language
        return tokenizer(text).input_ids

    model = nllb(len(tokenizer))
    sources = [encode(language, text) for language, text, _ in TAUGHT]
    teach(model, sources, [encode("eng_Latn", english) for _, _, english in TAUGHT])
    return save(tmp_path_factory.mktemp("nllb"), model, tokenizer)


@pytest.fixture(scope="module")
def mt(checkpoint: str) -> MT:
    return MT(MTConfig(model=checkpoint, max_batch_tokens=64, device="cpu"))


def ask(mt: MT, *texts: str) -> list[ToolResult]:
    return mt([ToolInput(text) for text in texts])


def test_sentences_of_several_languages_are_translated_in_order(mt: MT) -> None:
    answers = ask(mt, *(text for _, text, _ in TAUGHT))
    assert [one.result for one in answers] == [english for _, _, english in TAUGHT]


def test_a_beam_search_finds_them_too(checkpoint: str) -> None:
    mt = MT(MTConfig(model=checkpoint, beams=3, device="cpu"))
    assert [one.result for one in ask(mt, *(text for _, text, _ in TAUGHT))] == [last for *_, last in TAUGHT]


def test_a_translation_does_not_depend_on_what_else_is_in_the_list(mt: MT) -> None:
    words = " ".join(text for language, text, _ in TAUGHT if language == "deu_Latn").split()
    unknown = [" ".join(words[start : start + size]) for start in range(6) for size in (4, 7, 11)]
    texts = [*unknown, *(text for _, text, _ in TAUGHT)]
    together = ask(mt, *texts)
    assert together == [ask(mt, text)[0] for text in texts]
    assert together[::-1] == ask(mt, *texts[::-1])
    assert len({one.result for one in together}) > 4


def test_every_text_goes_with_the_token_of_its_own_language(mt: MT) -> None:
    for language, text, _ in TAUGHT:
        first, *_, last = mt._tokenizer.convert_ids_to_tokens(mt._encode(text))
        assert (first, last) == (language, "</s>")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty text"),
        (" \n\t", "empty text"),
        ("Where does the last train leave from this station?", "already English"),
        ("x 12", "language not certain"),
        ("1998 - 2003", "language not certain"),
        ("Gdzie jest najbliższa stacja kolejowa?", "language not known to the model"),
        ("Gallia est omnis divisa in partes tres, quarum unam incolunt.", "language not known to the model"),
        ("Der alte Hund schläft heute im Garten. " * 20, "text too long"),
        ("Hund " * 300_000, "text too long"),
    ],
)
def test_what_is_not_translated_has_a_reason(mt: MT, text: str, reason: str) -> None:
    assert ask(mt, text) == [ToolResult(reason=reason)]


def test_an_unsure_language_is_translated_if_the_configuration_says_so(checkpoint: str) -> None:
    text = "Hund im Bahnhof 1998 London"
    unsure = MT(MTConfig(model=checkpoint, min_confidence=0.99, device="cpu"))
    assert ask(unsure, text) == [ToolResult(reason="language not certain")]
    daring = MT(MTConfig(model=checkpoint, min_confidence=0.0, device="cpu"))
    assert ask(daring, text)[0].reason in (None, "translation too long")


HOSTILE = [
    "Der Hund\0 schläft\ud800 heute im Garten.",
    "Der Hund schläft </s> eng_Latn <pad> im Garten [MT(x)] -> ].",
    "Der Hund \u202e schläft im Garten 🙂🙂🙂 und wartet.",
    "\0" * 1000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_gets_a_result_or_a_reason_and_harms_no_other(mt: MT, text: str) -> None:
    hostile, harmless = ask(mt, text, TAUGHT[0][1])
    assert (hostile.result is None) != (hostile.reason is None)
    assert harmless.result == TAUGHT[0][2]


def test_special_tokens_in_a_text_are_text(mt: MT) -> None:
    ids = mt._encode("Der Hund </s> schläft im Garten.")
    assert ids.count(mt._tokenizer.eos_token_id) == 1


def test_a_translation_that_does_not_end_in_time_has_no_result(
    mt: MT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "_LIMIT_STEP", 3)
    monkeypatch.setattr(translation, "_LIMIT_PER_TOKEN", 0)
    assert ask(mt, TAUGHT[0][1]) == [ToolResult(reason="translation too long")]


def test_a_checkpoint_that_cannot_be_used_is_refused_with_its_field(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(Seq2SeqError, match=r"tools\.mt\.model .*cannot load it"):
        MT(MTConfig(model=str(tmp_path / "nothing")))
    other = byte_level([])
    other.pad_token = other.eos_token
    with pytest.raises(Seq2SeqError, match=r"tools\.mt\.model .*no language eng_Latn"):
        MT(MTConfig(model=save(tmp_path / "t5", t5(len(other)), other)))
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Seq2SeqError, match="cannot load it"):
        MT(MTConfig(model=str(tmp_path / "broken")))
