"""The fields of the published files, by benchmark: what a loader expects, and whose fields were found."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Form = tuple[str, ...]
"""The fields that every record of a form has."""

SVAMP: Form = ("ID", "Body", "Question", "Answer")
MAWPS: tuple[Form, ...] = (  # question and solution
    ("sQuestion", "lSolutions"),
    ("original_text", "ans"),  # MWPToolkit's
    ("input", "target"),  # JSON lines
)
LAMA_SQUAD: Form = ("masked_sentences", "obj_label", "id")
LAMA_GOOGLE_RE: Form = ("pred", "sub_label", "obj_label")
LAMA_TREX: Form = ("predicate_id", "sub_label", "obj_label")
LAMA_RELATIONS: Form = ("relation", "template")
TEMPLAMA: Form = ("query", "answer", "date")
QUESTIONS: tuple[Form, ...] = (
    ("question", "answer"),
    ("question", "answers"),
    ("qText", "answers"),
    ("utterance", "targetValue"),
    ("QuestionId", "Question", "Answer"),
)
PARAGRAPHS: tuple[Form, ...] = (("paragraphs",), ("context", "question", "answers", "id"))

FORMS: dict[str, tuple[Form, ...]] = {
    "svamp": (SVAMP,),
    "mawps": MAWPS,
    "lama_squad": (LAMA_SQUAD,),
    "lama_google_re": (LAMA_GOOGLE_RE,),
    "lama_trex": (LAMA_TREX,),
    "templama": (TEMPLAMA,),
    "mlqa_… and xquad_…": PARAGRAPHS,
    "webquestions, nq and triviaqa": QUESTIONS,
    "LAMA's relations": (LAMA_RELATIONS,),
    "a question file of your own": (("prompt", "answers", "scoring"),),
}


def has_form(fields: Collection[str], forms: Sequence[Form]) -> bool:
    """Whether a record with `fields` has one of `forms`."""
    return any(all(name in fields for name in form) for form in forms)


def owner(fields: Collection[str]) -> str:
    """The benchmark whose fields these are; "" if there is none."""
    return next((name for name, forms in FORMS.items() if has_form(fields, forms)), "")


def expected(forms: Sequence[Form]) -> str:
    """The fields of `forms` in a message."""
    return "the fields " + ", or ".join(" + ".join(form) for form in forms)
