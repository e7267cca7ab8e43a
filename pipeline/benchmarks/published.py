"""A published benchmark by its name: NAME=PATH, the paper's prompt, score and tools that are off.

In: an entry of `--benchmarks`. Out: None if it is a question file of the user's own, else the
benchmark. paper.toml holds the paper's table.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from pipeline.benchmarks import wikitext
from pipeline.benchmarks.arithmetic import asdiv, mawps, svamp
from pipeline.benchmarks.cloze import lama_google_re, lama_squad, lama_trex, templama
from pipeline.benchmarks.crosslingual import crosslingual, paths_of
from pipeline.benchmarks.dateset import dateset
from pipeline.benchmarks.example import BenchmarkFileError, Example, Loader
from pipeline.benchmarks.open_questions import open_questions
from tools_service.base.settings import Frozen

_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.*)", re.DOTALL)
_LOADERS: dict[str, Loader] = {
    "asdiv": asdiv,
    "asdiv_number": asdiv,
    "svamp": svamp,
    "mawps": mawps,
    "lama_squad": lama_squad,
    "lama_google_re": lama_google_re,
    "lama_trex": lama_trex,
    "templama": templama,
    "dateset": dateset,
    "webquestions": open_questions,
    "nq": open_questions,
    "triviaqa": open_questions,
}


class Rules(Frozen):
    """A row of the paper's table."""

    names: tuple[str, ...]
    prompt: str
    scoring: str
    tools_off: frozenset[str] = frozenset()


class _Table(Frozen):
    benchmark: tuple[Rules, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class PublishedBenchmark:
    """Prompts with answers. `left_out` counts what the files hold and the paper does not ask, by reason."""

    name: str
    rules: Rules
    examples: tuple[Example, ...]
    left_out: Mapping[str, int]

    def prompt(self, example: Example) -> str:
        """The paper's prompt for an example."""
        return self.rules.prompt.format(x=example.x, q=example.q).strip()


@functools.cache
def rules() -> dict[str, Rules]:
    """The paper's rules by name of the benchmark."""
    content = Path(__file__).with_name("paper.toml").read_text(encoding="utf-8")
    table = _Table.model_validate(tomllib.loads(content))
    return {name: row for row in table.benchmark for name in row.names}


def names() -> list[str]:
    """The names that NAME=PATH may have."""
    return sorted([*rules(), wikitext.NAME])


def published_name(entry: Path) -> tuple[str, Path] | None:
    """Name and path of NAME=PATH; None for the path of a question file. Raises BenchmarkFileError.

    A file whose own name has the form NAME=PATH is that file.
    """
    match = _NAMED.fullmatch(str(entry))
    if entry.exists():
        return None
    if match is None:
        if str(entry) in names():
            raise BenchmarkFileError(
                f"{entry}: name its files, {entry}=PATH, or for Dateset a seed, dateset=0"
            )
        return None
    name, source = match.groups()
    if name not in names():
        raise BenchmarkFileError(f"{entry}: no benchmark {name!r}; there are {', '.join(names())}")
    if not source:
        raise BenchmarkFileError(f"{entry}: name a file or folder after {name}=")
    return name, Path(source).expanduser()


def sources_of(entry: Path) -> list[Path]:
    """The files and folders that an entry of `--benchmarks` names; none for Dateset, which is generated.

    Raises BenchmarkFileError.
    """
    published = published_name(entry)
    if published is None:
        return [entry]
    name, source = published
    if name == "dateset":
        return []
    return [source] if name in (*_LOADERS, wikitext.NAME) else paths_of(source)


def load(name: str, source: Path) -> PublishedBenchmark:
    """The benchmark `name` from its published files. Raises BenchmarkFileError."""
    row = rules()[name]
    content = _LOADERS.get(name, crosslingual)(name, source)
    if not content.examples:
        reasons = ", ".join(f"{number:,} x {reason}" for reason, number in content.left_out.items())
        raise BenchmarkFileError(f"{source}: {name}: no question is left ({reasons})")
    seen: Counter[str] = Counter()
    examples = []
    for number, example in enumerate(content.examples, start=1):
        identity = example.id or f"{name}-{number}"
        seen[identity] += 1
        if seen[identity] > 1:  # published ids may come twice; the files of a run need distinct ones
            identity = f"{identity}#{seen[identity]}"
        examples.append(Example(identity, example.x, example.q, example.answers, example.date))
    return PublishedBenchmark(name, row, tuple(examples), dict(content.left_out))
