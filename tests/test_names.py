"""The code and its documentation use the field's terms: none of the words that the project once made up.

docs/decisions/0021 has the reasons. Checked are the identifiers and the file names of the Python code,
and the names that the documentation sets in backticks or links to. CHANGELOG.md and the decisions tell of
the past and may use old names. So may lines about earlier versions, and strings: old names of fields are
still read.

Not in the list, because they also have a usual meaning: `draws` (the paper's m draws) and `contexts`,
`columns` of a table, `packing` of examples, `places` of a decimal number, `failures` that are counted,
`left` and `join`, `service`, `Step`, `Run`, `Work`, `Passage`.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
CODE = ("pipeline", "tools_service", "bench", "cluster", "demo", "reference")

STANDARD = {
    "Account": "Usage",
    "Asked": "PendingCall",
    "Attempt": "PartialCall",
    "Attempts": "CrashTracker",
    "Beginnings": "ApiTokenMask",
    "Columns": "KVCache",
    "Contexts": "PrefilledBatch",
    "DEATHS": "MAX_CRASHES",
    "Draws": "Sampler",
    "Failures": "FailureBudget",
    "Habit": "ToolStatistics",
    "Handed": "the name of the value",
    "Journal": "MetricsLog",
    "LEDGER": "StepCache",
    "Ledger": "StepCache",
    "Markers": "CallTokens",
    "Needs": "ResourceRequest",
    "Order": "SamplingRequest or EpochSampler",
    "Pace": "throughput",
    "Pieces": "TokenizedText",
    "Places": "UnpaddedLayout",
    "Shard": "CorpusFile",
    "Survey": "CorpusSample",
    "Tally": "ProgressActor",
    "Turns": "ReadWriteLock",
    "barred": "calls_disabled",
    "batch_tokens": "max_batch_tokens",
    "connected": "ray_connection",
    "contestants": "systems",
    "experience": "assumptions_from_run",
    "fitting_tokens": "profile_max_batch_tokens",
    "following": "tail",
    "foresee": "estimate_work",
    "harvest": "collect_finished",
    "ingredients": "fingerprint",
    "ingress": "http",
    "journal": "metrics_log",
    "ledger": "step_cache",
    "markers": "call_tokens",
    "outlook": "render_plan",
    "pieces": "TokenizedText",
    "rehearse": "profile_max_batch_tokens",
    "settle": "recover_rows",
    "shards": "files",
    "sole_writer": "exclusive_lock",
    "spend": "record",
    "spent": "usage",
    "survey": "sample_corpus",
    "take_back": "rollback",
    "tally": "progress",
    "toolbox": "registry",
    "turns": "lock",
    "twins": "duplicates",
    "write_whole": "atomic_write",
}
"""Every name that must not come back, and the standard term."""

STANDARD_IN = {
    "pipeline/engine": {
        "allowed": "attention_mask",
        "depth": "position_ids",
        "features": "hidden_states",
        "probe": "checks",
        "Tree": "TreeBatch",
    },
    "pipeline/inference": {"Rows": "DecodeBatch"},
    "pipeline/method": {"left": "pending"},
}
"""Names that are usual elsewhere, by the folder in which they are not."""

OLD_MODULES = {"columns", "contexts", "draws", "probe", "reading", "service", "subject"}
"""Modules that have another name now, although the word is usual elsewhere."""


def standard_terms(path: Path) -> dict[str, str]:
    """The names that the file `path` must not use, and the terms for them."""
    folders = [parent.as_posix() for parent in path.parents]
    return STANDARD | {name: term for folder in folders for name, term in STANDARD_IN.get(folder, {}).items()}


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every identifier in a Python file."""
    with (ROOT / path).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string


def quoted_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and word of every name in backticks and of every link, without those of earlier versions."""
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1):
        if "earlier version" in line:
            continue
        for code, link in re.findall(r"`([^`]+)`|\]\(([^)]+)\)", line):
            for word in re.findall(r"\w+", code or link):
                yield number, word


def python_files() -> list[Path]:
    found = [path.relative_to(ROOT) for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(found) > 100
    return sorted(found)


def pages() -> list[Path]:
    """The documentation, without what tells of the past."""
    found = [path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]]
    return sorted(path for path in found if path.name != "CHANGELOG.md" and "decisions" not in path.parts)


def test_the_code_has_no_home_made_name() -> None:
    found = [
        f"{path}:{line}: {name} is called {terms[name]}"
        for path in python_files()
        for terms in [standard_terms(path)]
        for line, name in identifiers(path)
        if name in terms
    ]
    assert not found, "\n".join(found)


def test_no_file_is_called_by_a_home_made_name() -> None:
    old = OLD_MODULES | STANDARD.keys()
    assert not [str(path) for path in python_files() if path.stem in old]


def test_the_documentation_names_no_home_made_name() -> None:
    found = [
        f"{path}:{line}: {name} is called {STANDARD[name]}"
        for path in pages()
        for line, name in quoted_names(path)
        if name in STANDARD
    ]
    assert not found, "\n".join(found)
