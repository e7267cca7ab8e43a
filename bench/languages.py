"""How often the language of a question is identified correctly, as a code of NLLB.

    python -m bench.languages XQuAD.de.json XQuAD.zh.json … --codes deu_Latn zho_Hans …

In: files of questions in SQuAD's format, one language each. The codes default to the part of the
file's name between dots (`XQuAD.de.json` is "de"), translated by languages.FLORES. Out: a line per
file with the share of correct codes, also above thresholds of confidence, and the texts per
CPU-second. Without files, nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools_service.tools.languages import FLORES, flores_code, identify_language

THRESHOLDS = (0.5, 0.8)


@dataclass(frozen=True)
class Identified:
    """One question: whether its code is correct, and fastText's confidence."""

    correct: bool
    confidence: float


def read_questions(file: Path) -> Iterator[str]:
    """The questions of a file in SQuAD's format, in order."""
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield entry["question"]


def identify(texts: Sequence[str], code: str, words: int | None = None) -> list[Identified]:
    """Identify the language of each text, or of its first `words` words; compare with `code`."""
    identified = []
    for text in texts:
        start = " ".join(text.split()[:words])
        label, confidence = identify_language(start)
        identified.append(Identified(flores_code(label, start) == code, confidence))
    return identified


def expected_code(file: Path) -> str:
    """``zho_Hans`` for XQuAD.zh.json: the first part of the name that is one of fastText's labels."""
    label = next((part for part in file.name.split(".") if part in FLORES), None)
    if label is None:
        raise SystemExit(f"{file}: no part of its name is a language code; give --codes")
    return FLORES[label][0]


def report(name: str, identified: Sequence[Identified]) -> str:
    """``98.7 % of 240 correct; confidence 0.5 on: 99.1 % of 231; …``"""
    parts = [f"{name}: {_share(identified)} correct"]
    for threshold in THRESHOLDS:
        confident = [question for question in identified if question.confidence >= threshold]
        parts.append(f"confidence {threshold} on: {_share(confident)}")
    return "; ".join(parts)


def _share(identified: Sequence[Identified]) -> str:
    correct = sum(question.correct for question in identified)
    return f"{100 * correct / max(1, len(identified)):.1f} % of {len(identified)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Identify the language of questions in SQuAD's format.")
    parser.add_argument("files", nargs="*", type=Path, help="one language each")
    parser.add_argument("--codes", nargs="+", help="the FLORES-200 code of each file")
    parser.add_argument("--words", type=int, help="use only the first words of each question")
    args = parser.parse_args()
    if not args.files:
        print("bench.languages: no files named, nothing measured")
        return
    codes = args.codes or [expected_code(file) for file in args.files]
    everything: list[Identified] = []
    identify_language("the model is loaded before the clock starts")
    cpu_s = 0.0
    for file, code in zip(args.files, codes, strict=True):
        texts = list(read_questions(file))
        began = time.process_time()
        identified = identify(texts, code, args.words)
        cpu_s += time.process_time() - began
        everything += identified
        print(report(f"{file.name} {code}", identified))
    print(f"{report('all', everything)}; {len(everything) / cpu_s:.0f} texts per CPU-second")


if __name__ == "__main__":
    main()
