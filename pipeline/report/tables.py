"""What a run came to, for people: the funnel by tool, kept calls in context, the table of results.

In: manifests, annotation rows and evaluation.json, as other steps left them. Out: renderables of rich, which
print as plain text where there is no terminal. Nothing is computed anew. The calls shown are neither the best
nor the worst: they are drawn by a hash of where they stand, spread over the tools.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text as Styled

from pipeline.base.config import MethodConfig
from pipeline.evaluation.results import Evaluation, ModelResult
from pipeline.storage.counts import ToolCounts
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import read_rows
from pipeline.syntax.calls import linearise
from tools_service.tools.contract import TOOL_NAMES, ToolName

SHOWN_CALLS = 6
_CONTEXT = 140  # characters shown on either side of a call
_MODELS = ("base", "plain", "disabled", "toolformer")
_FUNNEL = (
    "texts",
    "selected",
    "positions",
    "draws",
    "candidates",
    "executed",
    "scored",
    "kept",
    "texts_kept",
)


@dataclass(frozen=True, slots=True)
class KeptCall:
    """One kept call where it stands: the text before and behind it, and what it is worth in nats."""

    tool: ToolName
    before: str
    call: str
    after: str
    gain: float
    source: str


def report(annotations: Path, evaluation: Path, files: Mapping[str, Path]) -> Group:
    """Everything the demo prints, from a folder that annotate wrote and a file that evaluate wrote."""
    manifest = read_manifest(annotations)
    columns = ["text_id", "document", "text", "calls"]
    calls = kept_calls(read_rows(annotations, columns), manifest.config.method)
    return Group(
        funnel_table(manifest.counts.tools if manifest.counts is not None else {}),
        calls_view(calls),
        result_table(Evaluation.read(evaluation)),
        files_table(files),
    )


def funnel_table(tools: Mapping[ToolName, ToolCounts]) -> Table:
    """From texts to kept calls, a line for each tool (paper section 2)."""
    table = Table(title="From texts to calls", title_justify="left")
    table.add_column("tool")
    for name in _FUNNEL:
        table.add_column("texts with one" if name == "texts_kept" else name, justify="right")
    for tool in sorted(tools, key=TOOL_NAMES.index):
        table.add_row(tool, *(f"{getattr(tools[tool], name):,}" for name in _FUNNEL))
    return table


def kept_calls(
    rows: Iterable[Mapping[str, Any]], method: MethodConfig, number: int = SHOWN_CALLS
) -> list[KeptCall]:
    """At most `number` calls that pass their tool's tau_f, from annotation rows, the same at every run.

    Tools take turns, so that each shows calls as long as it has any.
    """
    drawn: dict[ToolName, list[tuple[bytes, KeptCall]]] = {tool: [] for tool in TOOL_NAMES}
    for row in rows:
        for call in row["calls"]:
            if call["gain"] >= method.of(call["tool"]).tau_f:
                shown = drawn[call["tool"]]
                shown.append((_place(row["text_id"], call), _in_context(row, call)))
                if len(shown) > 4 * number:
                    shown[:] = heapq.nsmallest(number, shown, key=lambda one: one[0])
    lots = [sorted(shown, key=lambda one: one[0])[:number] for shown in drawn.values()]
    turns = chain.from_iterable(zip_longest(*lots))
    return [one[1] for one in turns if one is not None][:number]


def calls_view(calls: Iterable[KeptCall]) -> RenderableType:
    """Each call in its text, highlighted; in plain text the brackets mark it."""
    lines = [Styled("\nKept calls, where they stand (gain in nats)", style="italic")]
    for call in calls:
        body = Styled.assemble(call.before, (call.call, "bold green"), call.after)
        lines += [Styled(f"\n{call.tool}, {call.gain:+.2f}, {call.source}", style="cyan"), body]
    if len(lines) == 1:
        lines.append(Styled("none"))
    return Group(*lines, "")


def result_table(evaluation: Evaluation) -> Table:
    """Accuracy in percent and questions with a call, a line for each model; the paper's four come first."""
    names = [*(name for name in _MODELS if name in evaluation.models)]
    names += [name for name in evaluation.models if name not in _MODELS]
    benchmarks = list(
        dict.fromkeys(chain.from_iterable(evaluation.models[name].benchmarks for name in names))
    )
    table = Table(title="Results: percent right (questions with a call)", title_justify="left")
    table.add_column("model")
    for benchmark in benchmarks:
        sizes = {
            result.benchmarks[benchmark].n
            for result in evaluation.models.values()
            if benchmark in result.benchmarks
        }
        table.add_column(f"{escape(benchmark)}\nn = {' or '.join(map(str, sorted(sizes)))}", justify="right")
    table.add_column("perplexity", justify="right")
    for name in names:
        result = evaluation.models[name]
        value = "–" if result.perplexity is None else f"{result.perplexity:.2f}"
        table.add_row(escape(name), *(_score(result, benchmark) for benchmark in benchmarks), value)
    return table


def files_table(files: Mapping[str, Path]) -> Table:
    """Where things are."""
    table = Table(title="Files", title_justify="left", show_header=False, box=None)
    for what, path in files.items():
        table.add_row(what, Styled(str(path), overflow="fold"))
    return table


def _score(result: ModelResult, benchmark: str) -> str:
    if benchmark not in result.benchmarks:
        return "–"
    found = result.benchmarks[benchmark]
    return f"{100 * found.accuracy:.1f} ({found.calls})"


def _place(text_id: int, call: Mapping[str, Any]) -> bytes:
    """A number drawn for a call by where it stands and what it asks, never by what it is worth."""
    key = f"{text_id} {call['tool']} {call['position']} {call['input']}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _in_context(row: Mapping[str, Any], call: Mapping[str, Any]) -> KeptCall:
    text, position = row["text"], call["position"]
    start, end = max(0, position - _CONTEXT), position + _CONTEXT
    before, after = text[start:position], text[position:end]
    written = linearise(call["tool"], call["input"], call["result"])
    return KeptCall(
        tool=call["tool"],
        before=("… " + before.partition(" ")[2] if start else before).replace("\n", " "),
        call=written if position else written[1:] + " ",  # as in x*: a text begins with no space
        after=(after.rpartition(" ")[0] + " …" if end < len(text) else after).replace("\n", " "),
        gain=call["gain"],
        source=row["document"]["url"] or row["document"]["source"],
    )
