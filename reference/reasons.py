"""The page of the reasons: every reason for which a text, a draw or a call is not kept.

The lists are those of docs/method.md and docs/corpus.md, which tests compare with the code; what a reason
means, and what to change, is in pipeline/report/reasons.py, as the report shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.report.reasons import ReasonStage, explain
from reference.markdown import code, prose, table

DOCS = Path(__file__).parents[1] / "docs"

# A stage: the beginning of its paragraph in method.md, its heading here, and where the rows count it.
STAGES: dict[ReasonStage, tuple[str, str, str]] = {
    "not selected": (
        "A tool is not tried on a text",
        "A tool is not tried on a text",
        "In `funnel[].selection`, after `no: `.",
    ),
    "discarded draw": ("A draw is no call", "A draw is no call", "In `funnel[].discarded`."),
    "no result": (
        "A tool gives no result",
        "A tool gives no result",
        "In `funnel[].discarded`, after `tool: `. A tool of your own may give others.",
    ),
    "not scored": (
        "A call with a result is not scored",
        "A call with a result is not scored",
        "In `funnel[].discarded`.",
    ),
}
EVERY_TOOL = "every tool"


def page() -> str:
    """Every reason, with its meaning and what to change."""
    parts = [_INTRODUCTION, "## A text is skipped\n", "In `reason`, with details after a colon.\n"]
    parts.append(table(_HEADER, (_row("skipped", "–", kind) for kind in skipped())))
    parts += ["## A text failed\n", _FAILED]
    for stage, (_, heading, place) in STAGES.items():
        parts += [f"## {heading}\n", f"{place}\n"]
        parts.append(table(_HEADER, (_row(stage, tool, reason) for tool, reason in of_stage(stage))))
    parts += ["## A call fails while decoding\n", "[More on decoding](../evaluation.md#decoding)\n"]
    parts.append(_table_in("evaluation.md", "| reason | the call |"))
    parts += ["## A line of `score` has no score\n", _table_in("scoring.md", "| reason | meaning |")]
    return "\n".join(parts)


_INTRODUCTION = """# Reasons

Nothing is dropped silently: every text, draw and call that is not kept is counted under a reason, in the
rows, in manifests, in the report and in the metrics.
"""
_FAILED = """In `reason`: the name of the error and its message. `process died`: the process of the annotator
died twice while it had this text alone. `annotate --retry-failed` tries these texts again
([Troubleshooting](../operations.md#troubleshooting)).
"""
_HEADER = ("reason", "tool", "meaning", "what to change")


def _row(stage: ReasonStage, tool: str, reason: str) -> tuple[str, str, str, str]:
    explanation = explain(stage, reason, None if tool in (EVERY_TOOL, "–") else tool)
    return code(reason), tool, prose(explanation.meaning), prose(explanation.advice) or "–"


def of_stage(stage: ReasonStage) -> Iterator[tuple[str, str]]:
    """The tool and the name of each reason of a stage."""
    section = (DOCS / "method.md").read_text().split("\n## Reasons\n")[1].split("\n## ")[0]
    paragraphs = re.split(r"\n\n(?=[A-Z])", section)
    [paragraph] = [part for part in paragraphs if part.startswith(STAGES[stage][0])]
    head, *bullets = re.split(r"^- ", paragraph, flags=re.MULTILINE)
    for text in bullets or [f"{EVERY_TOOL}: {head}"]:
        tool, _, listed = text.partition(":")
        tool = tool if re.fullmatch(r"[A-Z]\w+", tool) else EVERY_TOOL
        for name in re.findall(r"`([^`]+)`", listed):
            reason = " ".join(name.split())
            if "." not in reason and reason not in ("no:", "tool:"):
                yield tool, reason


def skipped() -> list[str]:
    """The kinds of reason for which a text is skipped."""
    return re.findall(r"^\| `([^`]+)` \|", _table_in("corpus.md", "| kind | cause |"), re.MULTILINE)


def _table_in(page: str, header: str) -> str:
    """The table of a page that begins with `header`."""
    text = (DOCS / page).read_text()
    return text[text.index(header) :].partition("\n\n")[0] + "\n"
