"""How many questions published files hold, beside the counts that are known of them.

    python -m bench.counts svamp=SVAMP.json lama_trex=LAMA/ nq=NQ-open.dev.jsonl wikitext=wiki.test.raw

In: entries as `evaluate --benchmarks` takes them (Dateset, which is generated, without any). Out: a
table with the questions, those without a usable answer, and what is left out by reason. It loads no
model and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.benchmarks.arithmetic import NOT_ONE_NUMBER
from pipeline.benchmarks.cloze import MASK_NOT_LAST
from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import load, published_name
from pipeline.benchmarks.wikitext import NAME as WIKITEXT
from pipeline.benchmarks.wikitext import wikitext
from pipeline.evaluation.scoring import usable_answers


@dataclass(frozen=True, slots=True)
class Counts:
    """What a benchmark's files hold. `without_answer`: None if it is not known."""

    questions: int
    without_answer: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def agrees(self, known: Counts) -> bool:
        """Whether these are the counts of a published file."""
        without_answer = known.without_answer in (None, self.without_answer)
        left_out = sum(self.left_out.values()) == sum(known.left_out.values())
        return self.questions == known.questions and without_answer and left_out


KNOWN: dict[str, dict[str, Counts]] = {
    "svamp": {"SVAMP.json": Counts(1_000)},
    "asdiv": {"ASDiv.xml": Counts(2_305, 221)},
    "asdiv_number": {"ASDiv.xml": Counts(2_084, 0, {NOT_ONE_NUMBER: 221})},
    "mawps": {
        "AddSub": Counts(395),
        "SingleEq": Counts(508),
        "SingleOp": Counts(562),
        "MultiArith": Counts(600),
        "MWPToolkit": Counts(2_373),
        "MWPToolkit train": Counts(1_898),
        "MWPToolkit valid": Counts(237),
        "MWPToolkit test": Counts(238),
        "one unknown": Counts(1_987),
    },
    "webquestions": {"test": Counts(2_032, 10), "devtest": Counts(189)},
    "nq": {
        "dev": Counts(3_610, 2),
        "efficientqa dev": Counts(1_800),
        "efficientqa test": Counts(1_769),
    },
    "triviaqa": {"DPR test": Counts(11_313, 7), "DPR dev": Counts(8_837)},
    "lama_squad": {"all": Counts(213, None, {MASK_NOT_LAST: 92})},
    "lama_google_re": {"all": Counts(3_703, None, {MASK_NOT_LAST: 1_825})},
    "lama_trex": {"28 relations": Counts(18_601, None, {MASK_NOT_LAST: 4_280})},
    **{f"xquad_{language}": {"all": Counts(1_190)} for language in ("es", "de", "hi", "vi", "zh", "ar")},
    "dateset": {"any seed": Counts(9_400)},
    WIKITEXT: {"WikiText-2 test": Counts(4_358)},
}
"""Counts of the published files, by benchmark and file. WikiText's are lines."""


def count(name: str, source: Path) -> Counts:
    """The counts of the files at `source`. Raises BenchmarkFileError."""
    if name == WIKITEXT:
        return Counts(wikitext(source).lines, 0)
    benchmark = load(name, source)
    answers = [usable_answers(benchmark.rules.scoring, example.answers) for example in benchmark.examples]
    return Counts(len(answers), answers.count(()), benchmark.left_out)


def verdict(name: str, counts: Counts) -> str:
    """The published file whose counts these are, or those that are known of the benchmark."""
    known = KNOWN.get(name, {})
    if same := [file for file, expected in known.items() if counts.agrees(expected)]:
        return f"as {same[0]}"
    others = "; ".join(f"{file} {_shown(expected)}" for file, expected in known.items())
    return f"differ: {others}" if others else "none"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Questions of published files, beside the known counts.")
    parser.add_argument("entries", nargs="*", metavar="NAME=PATH", type=Path, default=[Path("dateset=0")])
    table = Table("questions", "without a usable answer", "left out", "known counts", "files")
    try:
        for entry in parser.parse_args(arguments).entries:
            if (published := published_name(entry)) is None:
                raise BenchmarkFileError(f"{entry}: give NAME=PATH")
            name, source = published
            counts = count(name, source)
            left_out = ", ".join(f"{number:,} {reason}" for reason, number in counts.left_out.items())
            cells = f"{counts.questions:,}", f"{counts.without_answer:,}", left_out, verdict(name, counts)
            table.add_row(*cells, str(entry))
    except BenchmarkFileError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table.columns[-1].overflow = "fold"
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _shown(counts: Counts) -> str:
    without = f", {counts.without_answer:,} without a usable answer" if counts.without_answer else ""
    left_out = f", {sum(counts.left_out.values()):,} left out" if counts.left_out else ""
    return f"{counts.questions:,}{without}{left_out}"


if __name__ == "__main__":
    main()
