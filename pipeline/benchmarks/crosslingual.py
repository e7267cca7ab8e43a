"""MLQA and XQuAD: an English paragraph, a question in another language (paper section 4.2.4).

MLQA's own files hold both (test-context-en-question-de.json). Two files of one language each
(context and question) are joined on the id: paragraph and answers from the English one, the
question from the other. In: a file, whose partner lies beside it under the same name with the other
language's code; two files joined by a comma; or a folder. Forms: SQuAD's nested JSON, or one object
per question with `context`, `question`, `answers` and `id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.benchmarks.example import BenchmarkFileError, Example, Examples, flat_strings, text_of
from pipeline.benchmarks.files import Record, files_below, read_records
from pipeline.benchmarks.forms import PARAGRAPHS
from tools_service.tools.languages import identify_language

NO_PARTNER = "no English paragraph with its id"

_ENGLISH = "en"
_LANGUAGES = frozenset({"es", "de", "hi", "vi", "zh", "ar", _ENGLISH})
_SAMPLE = 50  # questions that show the language of a file
_SURE = 0.8  # confidence, as in Appendix A


@dataclass(frozen=True, slots=True)
class _Passage:
    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    passages: Sequence[_Passage]

    def language(self, field: str) -> str:
        """fastText's label of the contexts or questions; "" if it is not sure."""
        texts = dict.fromkeys(getattr(passage, field) for passage in self.passages)
        label, confidence = identify_language(" ".join(islice(texts, _SAMPLE)))
        return label if confidence > _SURE else ""


def crosslingual(name: str, source: Path) -> Examples:
    """The questions in the language that `name` ends with, each with its English paragraph."""
    family, _, language = name.rpartition("_")
    files = [_read(name, path) for path in _paths(family, language, source)]
    if len(files) == 1 and (partner := _partner(files[0], language)) is not None:
        files.append(_read(name, partner))
    questions = next((file for file in files if _may_be(file.language("question"), language)), None)
    english = next((file for file in files if _may_be(file.language("context"), _ENGLISH)), None)
    if questions is None or english is None:
        which = f"questions in {language!r}" if questions is None else "English paragraphs"
        found = ", ".join(f"{file.path.name} ({_described(file)})" for file in files)
        raise BenchmarkFileError(
            f"{source}: {name} expects {which}, in one file or in two joined on the id (A.json,B.json); "
            f"found {found}"
        )
    paragraphs: dict[str, _Passage] = {}
    for passage in english.passages:
        paragraphs.setdefault(passage.id, passage)
    pairs = [(passage, paragraphs.get(passage.id)) for passage in questions.passages]
    if questions is english:
        pairs = [(passage, passage) for passage in questions.passages]
    examples = [
        Example(question.id, paragraph.context, question.question, paragraph.answers)
        for question, paragraph in pairs
        if paragraph is not None
    ]
    if not examples:
        raise BenchmarkFileError(
            f"{source}: {name}: {questions.path.name} and {english.path.name} have no id in common"
        )
    missing = len(pairs) - len(examples)
    return Examples(examples, {NO_PARTNER: missing} if missing else {})


def _may_be(found: str, wanted: str) -> bool:
    """Whether a text counts as of the language `wanted`: only another language of MLQA speaks against it."""
    return found == wanted or found not in _LANGUAGES


def _described(file: _File) -> str:
    context, question = (file.language(field) or "unclear" for field in ("context", "question"))
    return f"context {context}, questions {question}"


def paths_of(source: Path) -> list[Path]:
    """The folder, the file or the two files A.json,B.json that `source` names. Raises BenchmarkFileError."""
    if source.exists() or "," not in str(source):
        return [source]
    paths = [Path(part) for part in str(source).split(",") if part]
    if len(paths) != 2:
        raise BenchmarkFileError(f"{source}: name two files, A.json,B.json")
    return paths


def _paths(family: str, language: str, source: Path) -> list[Path]:
    """The files that `source` names or holds."""
    return _in_folder(family, language, source) if source.is_dir() else paths_of(source)


def _in_folder(family: str, language: str, folder: Path) -> list[Path]:
    files = files_below(folder, ("json", "jsonl"))
    files = [path for path in files if family in path.name.lower()] or files
    both = [path for path in files if f"context-{_ENGLISH}-question-{language}" in path.name.lower()]
    groups = [both] if both else [[p for p in files if _codes(p) == {code}] for code in (language, _ENGLISH)]
    for group in groups:
        if len(group) != 1:
            names = f": {', '.join(path.name for path in group[:4])}" if group else ""
            wanted = f"one file of {language!r} and one of {_ENGLISH!r}, or context-en-question-{language}"
            raise BenchmarkFileError(
                f"{folder}: expected {wanted}, by their names; found {len(group)}{names}"
            )
    return [group[0] for group in groups]


def _codes(path: Path) -> set[str]:
    """The codes of languages in a file's name."""
    return set(re.findall(r"[a-z]+", path.name.lower())) & _LANGUAGES


def _partner(file: _File, language: str) -> Path | None:
    """The file beside `file` with the other language's code in its name, if `file` is of one language."""
    other = {language: _ENGLISH, _ENGLISH: language}.get(file.language("question"))
    if other is None or file.language("context") != file.language("question"):
        return None
    own = _ENGLISH if other == language else language
    name = re.sub(rf"(?<![A-Za-z]){own}(?![A-Za-z])", other, file.path.name)
    path = file.path.with_name(name)
    return path if path != file.path and path.is_file() else None


def _read(name: str, path: Path) -> _File:
    passages: list[_Passage] = []
    for record in read_records(name, path, PARAGRAPHS):
        passages += _flattened(record)
    if not passages:
        raise BenchmarkFileError(f"{path}: holds no question")
    return _File(path, passages)


def _flattened(record: Record) -> Iterator[_Passage]:
    """The questions of a record: of SQuAD's article with its paragraphs, or the one of a flat form."""
    value, where = record.value, record.where
    if "paragraphs" not in value:
        yield _passage(value, value["context"], where)
        return
    try:
        for paragraph in value["paragraphs"]:
            for question in paragraph["qas"]:
                yield _passage(question, paragraph["context"], where)
    except (KeyError, TypeError) as error:
        raise BenchmarkFileError(
            f"{where}: expected paragraphs with context and qas (id, question, answers): {error!r}"
        ) from error


def _passage(value: Any, context: Any, where: str) -> _Passage:
    texts: list[str] = []
    answers = value["answers"]
    for answer in answers if isinstance(answers, list) else [answers]:
        texts += flat_strings(answer["text"] if isinstance(answer, dict) else answer, where)
    return _Passage(
        id=str(value["id"]),
        context=text_of(context, "context", where),
        question=text_of(value["question"], "question", where),
        answers=tuple(dict.fromkeys(texts)),
    )
