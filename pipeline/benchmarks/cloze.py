"""LAMA and TempLAMA: texts whose last word is to be completed (paper sections 4.2.1 and 4.2.5).

LAMA SQuAD has masked sentences. T-REx and Google-RE have facts, which the template of their
relation makes a text, as LAMA does: T-REx's templates are in LAMA's relations.jsonl, Google-RE's
here. TempLAMA has queries with `_X_`. A text is used if its mask is last but for punctuation, since
a model continues texts; the others are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.benchmarks.example import BenchmarkFileError, Example, Examples, flat_strings, text_of
from pipeline.benchmarks.files import Record, read_records, records_of_form
from pipeline.benchmarks.forms import LAMA_GOOGLE_RE, LAMA_RELATIONS, LAMA_SQUAD, LAMA_TREX, TEMPLAMA, Form

MASK_NOT_LAST = "mask not last"

_LAST_MASK = re.compile(r"(?:\[MASK\]|\[Y\]|_X_)[\s.,;:!?]*$")
_GOOGLE_RE_TEMPLATES = {
    "place_of_birth": "[X] was born in [Y] .",
    "place_of_death": "[X] died in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
}
_MIDDLE_OF_YEAR = "07-01"


def lama_squad(name: str, source: Path) -> Examples:
    """LAMA's SQuAD: the first masked sentence of each line."""

    def text(record: Record) -> str:
        sentences = flat_strings(record.value["masked_sentences"], record.where)
        if not sentences:
            raise BenchmarkFileError(f"{record.where}: masked_sentences is empty")
        return sentences[0]

    return _examples(_records(name, source, LAMA_SQUAD), text, "id")


def lama_google_re(name: str, source: Path) -> Examples:
    """LAMA's Google-RE: the template of `pred` with the subject."""

    def text(record: Record) -> str:
        return _filled(_template(record, "pred", _GOOGLE_RE_TEMPLATES, "Google-RE's relations"), record)

    return _examples(_records(name, source, LAMA_GOOGLE_RE), text, "uuid")


def lama_trex(name: str, source: Path) -> Examples:
    """LAMA's T-REx: the template of `predicate_id` with the subject; one example for each fact."""
    records = _records(name, source, LAMA_TREX)
    path, templates = _relations(source)

    def text(record: Record) -> str:
        return _filled(_template(record, "predicate_id", templates, str(path)), record)

    return _examples(records, text, "uuid")


def templama(name: str, source: Path) -> Examples:
    """TempLAMA: `query` with its answers. The calendar answers with the middle of the query's year."""
    return _examples(
        _records(name, source, TEMPLAMA),
        lambda record: text_of(record.value["query"], "query", record.where),
        "id",
        _entity_names,
        _day,
    )


def _records(name: str, source: Path, form: Form) -> list[Record]:
    return [record for records in records_of_form(name, source, [form]) for record in records]


def _examples(
    records: Iterable[Record],
    text: Callable[[Record], str],
    id_field: str,
    answers: Callable[[Record], list[str]] = lambda record: [
        text_of(record.value["obj_label"], "obj_label", record.where)
    ],
    day: Callable[[Record], str | None] = lambda _: None,
) -> Examples:
    """The examples whose mask is last: `x` is what stands before it."""
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for record in records:
        masked = text(record)
        mask = _LAST_MASK.search(masked)
        if mask is None or not masked[: mask.start()].strip():
            left_out[MASK_NOT_LAST] += 1
            continue
        identity = str(record.value.get(id_field) or "")
        x = masked[: mask.start()].strip()
        examples.append(Example(identity, x, "", tuple(answers(record)), day(record)))
    return Examples(examples, left_out)


def _template(record: Record, field: str, templates: dict[str, str], origin: str) -> str:
    relation = text_of(record.value[field], field, record.where).rpartition("/")[2]
    if relation not in templates:
        raise BenchmarkFileError(
            f"{record.where}: {field} = {relation[:40]!r} is not among those of {origin}"
        )
    return templates[relation]


def _filled(template: str, record: Record) -> str:
    subject = text_of(record.value["sub_label"], "sub_label", record.where)
    before, mark, after = template.partition("[Y]")  # a subject may contain the mark
    return before.replace("[X]", subject) + mark + after.replace("[X]", subject)


def _relations(source: Path) -> tuple[Path, dict[str, str]]:
    """LAMA's relations.jsonl, in the folder, below it, or up to two folders above, and its templates."""
    folder = source if source.is_dir() else source.parent
    found = sorted(folder.rglob("*relations.jsonl*"))
    for above in list(folder.absolute().parents)[:2]:
        found = found or sorted(above.glob("*relations.jsonl*"))
    if not found:
        raise BenchmarkFileError(
            f"{source}: lama_trex needs the templates in LAMA's relations.jsonl; put it into {folder}"
        )
    templates = {}
    for record in read_records("lama_trex", found[0], [LAMA_RELATIONS]):
        relation, template = (text_of(record.value[field], field, record.where) for field in LAMA_RELATIONS)
        templates[relation] = template
    return found[0], templates


def _entity_names(record: Record) -> list[str]:
    """TempLAMA's answers: entities with a name, or texts."""
    value = record.value["answer"]
    entities = value if isinstance(value, list) else [value]
    names = [entity.get("name") if isinstance(entity, dict) else entity for entity in entities]
    return flat_strings(names, record.where)


def _day(record: Record) -> str:
    year = str(record.value["date"])
    if not re.fullmatch(r"[0-9]{4}", year):
        raise BenchmarkFileError(f"{record.where}: date must be a year of four digits, not {year[:40]!r}")
    return f"{year}-{_MIDDLE_OF_YEAR}"
