"""The results of a run for people: counts by tool, examples of kept calls, the table of scores.

In: manifests, annotation rows and evaluation.json. Out: renderables of rich, which print as plain
text where there is no terminal. Nothing is measured again. The calls shown are neither the best nor
the worst: a hash of their place in the corpus selects them, and tools take turns.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text as Styled

from pipeline.base.config import MethodConfig
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.results import BenchmarkResult, Evaluation, RunningTextResult
from pipeline.storage.counts import ToolCounts
from tools_service.contract.declarations import in_order
from tools_service.syntax.calls import linearise

SHOWN_CALLS = 6
_CONTEXT = 140  # characters shown on either side of a call
_MAX_COLUMNS = 8  # that fit beside the models
_MODELS = ("base", "plain", "disabled", "toolformer")
_FUNNEL = [
    name for name, field in ToolCounts.model_fields.items() if field.annotation is int and field.is_required()
]


@dataclass(frozen=True, slots=True)
class KeptCall:
    """A kept call and the text around it."""

    tool: str
    before: str
    call: str
    after: str
    gain: float  # nats
    source: str


def console() -> Console:
    """Where results are printed. Wide enough for the tables if standard output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 140)


def kept_calls(
    rows: Iterable[Mapping[str, Any]], method: MethodConfig, number: int = SHOWN_CALLS
) -> list[KeptCall]:
    """At most `number` calls that reach their tool's tau_f, whatever the order of the rows.

    Tools take turns as long as they have calls.
    """
    samples: dict[str, list[tuple[bytes, KeptCall]]] = {tool: [] for tool in in_order(method.tools)}
    for row in rows:
        for call in row["calls"]:
            if call["gain"] >= method.of(call["tool"]).tau_f:
                sample = samples[call["tool"]]
                key = _sort_key(row["text_id"], call)
                sample.append((key, _in_context(row, call)))
                sample.sort(key=itemgetter(0))
                del sample[number:]
    by_turns = chain.from_iterable(zip_longest(*samples.values()))
    return [entry[1] for entry in by_turns if entry is not None][:number]


def calls_view(calls: Iterable[KeptCall]) -> RenderableType:
    """Each call in its text: highlighted on a terminal, in brackets everywhere."""
    lines = [Styled("\nKept calls in their texts (gain in nats)", style="italic")]
    for call in calls:
        body = Styled.assemble(call.before, (call.call, "bold green"), call.after)
        lines += [Styled(f"\n{call.tool}, {call.gain:+.2f}, {call.source}", style="cyan"), body]
    if len(lines) == 1:
        lines.append(Styled("none"))
    return Group(*lines, "")


def result_table(evaluation: Evaluation) -> Table:
    """Accuracy in percent, its 95 % interval, and questions with a call; the paper's four models first.

    A further line of a cell has failed calls, questions that were not asked, and p of the paired test. A
    model is a row, or a column if there are many benchmarks.
    """
    names = [name for name in _MODELS if name in evaluation.models]
    names += [name for name in evaluation.models if name not in _MODELS]
    models = [evaluation.models[name] for name in names]
    measures: dict[str, list[str]] = {}  # a cell for each model
    for benchmark in dict.fromkeys(chain.from_iterable(model.benchmarks for model in models)):
        results = [model.benchmarks.get(benchmark) for model in models]
        sizes = sorted({result.n for result in results if result is not None})
        measures[f"{benchmark}\nn = {' or '.join(map(str, sizes))}"] = [_score(result) for result in results]
    for text in dict.fromkeys(chain.from_iterable(model.running_texts for model in models)):
        measures[f"{text}\nby word / token"] = [
            _running_text(model.running_texts.get(text)) for model in models
        ]
    measures["perplexity"] = [
        "–" if model.perplexity is None else f"{model.perplexity:.2f}" for model in models
    ]
    title = "Results: percent right (questions with a call), 95 % interval"
    if others := {model.compared_with: None for model in models if model.compared_with}:
        title += f"; p against {', '.join(others)} (McNemar)"
    table = Table(title=escape(title), title_justify="left", show_lines=len(measures) > _MAX_COLUMNS)
    if len(measures) > _MAX_COLUMNS:
        table.add_column("benchmark")
        for name in names:
            table.add_column(escape(name), justify="right")
        for measure, cells in measures.items():
            table.add_row(escape(measure), *cells)
        return table
    table.add_column("model")
    for measure in measures:
        table.add_column(escape(measure), justify="right")
    for name, *cells in zip(names, *measures.values(), strict=True):
        table.add_row(escape(name), *cells)
    return table


def _score(result: BenchmarkResult | None) -> str:
    if result is None:
        return "–"
    low, high = result.interval or wilson(round(result.accuracy * result.n), result.n)
    lines = [f"{100 * result.accuracy:.1f} ({result.calls})", f"{100 * low:.1f}–{100 * high:.1f}"]
    if failed := sum(result.failed_calls.values()):
        lines.append(f"{failed} failed")
    if not_asked := sum(result.not_asked.values()):
        lines.append(f"{not_asked} not asked")
    if result.paired is not None:
        lines.append("p < 0.001" if result.paired.p < 0.001 else f"p = {result.paired.p:.3f}")
    return "\n".join(lines)


def _running_text(result: RunningTextResult | None) -> str:
    if result is None or result.word_perplexity is None or result.token_perplexity is None:
        return "–"
    return f"{result.word_perplexity:.2f} / {result.token_perplexity:.2f}"


def _sort_key(text_id: int, call: Mapping[str, Any]) -> bytes:
    """A pseudo-random key from the place and the input of a call, independent of its gain."""
    key = f"{text_id} {call['tool']} {call['position']} {call['input']}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _in_context(row: Mapping[str, Any], call: Mapping[str, Any]) -> KeptCall:
    text, position = row["text"], call["position"]
    start, end = max(0, position - _CONTEXT), position + _CONTEXT
    before, after = text[start:position], text[position:end]
    if start:
        before = "… " + before.partition(" ")[2]
    if end < len(text):
        after = after.rpartition(" ")[0] + " …"
    written = linearise(call["tool"], call["input"], call["result"])
    return KeptCall(
        tool=call["tool"],
        before=before.replace("\n", " "),
        call=written if position else written[1:] + " ",  # as in x*: a text begins with no space
        after=after.replace("\n", " "),
        gain=call["gain"],
        source=row["document"]["url"] or row["document"]["source"],
    )
