"""ASDiv, SVAMP and MAWPS: problems whose answer is a number (paper section 4.2.2).

SVAMP: `Body` and `Question`, joined as they are, also where the body lacks a full stop. ASDiv: XML;
an answer of several numbers, of words, a ratio, a time or a fraction is not one number, so `asdiv`
keeps the problem without a usable answer, and `asdiv_number` leaves it out. MAWPS: the original
files (`sQuestion`, `lSolutions`), MWPToolkit's (`original_text`, `ans`), and JSON lines of `input` and
`target`; several different solutions are not one number either.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from pipeline.benchmarks.example import BenchmarkFileError, Example, Examples, flat_strings, text_of
from pipeline.benchmarks.files import one_file, read_records, read_text, records_of_form
from pipeline.benchmarks.forms import MAWPS, SVAMP, has_form

logger = logging.getLogger(__name__)

NOT_ONE_NUMBER = "not one number"

_ASDIV = ("Body", "Question", "Answer")
_ONE_NUMBER = re.compile(
    r"""[-−]?\s*[$€£]?\s*
        (?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.|\.\d+)?(?<=[\d.])     # 9; 1,234; 0.5; .5
        \s*(?:%|°)?
        (?!\s*(?i:[ap]\.?m\b))                                       # 6 p.m. is a time
        (?:\s*\([^();]*\) | \s+[^\W\d][^\d;:/]*)?                     # 9 (apples), 9 apples
    """,
    re.VERBOSE,
)


def svamp(name: str, source: Path) -> Examples:
    """SVAMP.json: an array of problems."""
    examples = []
    for record in read_records(name, one_file(name, source, ("json", "jsonl")), [SVAMP]):
        body, question = (text_of(record.value[field], field, record.where) for field in SVAMP[1:3])
        answers = flat_strings(record.value["Answer"], record.where)
        examples.append(Example(str(record.value["ID"]), body, question, tuple(answers)))
    return Examples(examples)


def mawps(name: str, source: Path) -> Examples:
    """MAWPS: one file, or all files of a folder."""
    examples = []
    files_of = Counter[str]()
    for records in records_of_form(name, source, MAWPS):
        in_file = set()
        for record in records:
            value, where = record.value, record.where
            question_field, solution_field = next(form for form in MAWPS if has_form(value, [form]))
            question = text_of(value[question_field], question_field, where)
            solutions = list(dict.fromkeys(flat_strings(value[solution_field], where)))
            answers = tuple(solutions) if len(solutions) == 1 else ()
            identity = str(value.get("iIndex", value.get("id", "")))
            examples.append(Example(identity, "", question, answers))
            in_file.add(question)
        files_of.update(in_file)
    if repeated := sum(number > 1 for number in files_of.values()):
        logger.warning(
            "%s: %s: %s questions are in several of its files and are asked once for each; "
            "to ask them once, name one file",
            name,
            source,
            f"{repeated:,}",
        )
    return Examples(examples)


def asdiv(name: str, source: Path) -> Examples:
    """ASDiv.xml; `asdiv_number` leaves out problems whose answer is not one number."""
    path = one_file(name, source, ("xml",))
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BenchmarkFileError(f"{path}: {name} expects ASDiv's XML, which declares no entities")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise BenchmarkFileError(f"{path}: {name} expects ASDiv's XML; found no XML: {error}") from error
    examples, left_out = [], Counter[str]()
    for number, problem in enumerate(root.iter("Problem"), start=1):
        where = f"{path}, problem {number}"
        fields = {child.tag: "".join(child.itertext()).strip() for child in problem}
        if missing := [field for field in _ASDIV if field not in fields]:
            raise BenchmarkFileError(f"{where}: {name} expects {', '.join(_ASDIV)}; {missing[0]} is missing")
        body, question, answer = (fields[field] for field in _ASDIV)
        answers = (answer,) if is_one_number(answer) else ()
        if not answers and name == "asdiv_number":
            left_out[NOT_ONE_NUMBER] += 1
            continue
        examples.append(Example(problem.get("ID", ""), body, question, answers))
    if not examples:
        raise BenchmarkFileError(
            f"{path}: {name} expects elements Problem; found <{root.tag[:40]}> without any"
        )
    return Examples(examples, left_out)


def is_one_number(answer: str) -> bool:
    """Whether an answer of ASDiv is a single number, with a unit or without: `9 (apples)`."""
    return _ONE_NUMBER.fullmatch(answer.strip()) is not None
