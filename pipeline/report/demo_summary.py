"""What the demo prints at its end: from texts to C*, some calls, the four models, what to try next.

In: the outputs of the demo's steps. Out: renderables of rich, which print as plain text in 80 columns where
there is no terminal. Nothing is measured again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text as Styled

from pipeline.augmentation.annotated_rows import rows_reaching
from pipeline.augmentation.merge import MergeManifest, input_rule_of
from pipeline.base.inference_config import EvaluateConfig
from pipeline.evaluation.inputs import read_inputs
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.questions import Question
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult
from pipeline.evaluation.store import predictions_file
from pipeline.method import merging
from pipeline.report.losses import annotation_losses
from pipeline.report.tables import calls_view, kept_calls
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, read_finished
from pipeline.storage.row_files import read_rows
from tools_service.base.files import read_model
from tools_service.contract.declarations import in_order

# Counts of the manifest, and what docs/concepts.md and the report call them.
_FUNNEL = {
    "selected": "selected",
    "positions": "positions",
    "candidates": "calls",
    "executed": "results",
    "scored": "scored",
    "kept": "kept",
}
_COLUMNS = {"base": "base", "plain": "no calls", "disabled": "disabled", "toolformer": "Toolformer"}
_LATER_ROUND = re.compile(r"round-\d+")
_NO_TOOL = "plain"  # the benchmark whose questions need none
_SIGNIFICANT = 0.05


def summary(
    annotations: Path,
    augmented: Path,
    evaluation_file: Path,
    later_rounds: Sequence[tuple[Path, Path]] = (),
) -> Group:
    """What the demo came to, from its outputs; of later rounds, the annotations and C* of each."""
    manifest, merged = read_finished(annotations), read_model(augmented / MANIFEST, MergeManifest)
    evaluation = Evaluation.read(evaluation_file)
    columns = ["text_id", "document", "text", "calls"]
    return Group(
        "",
        funnel_table(manifest, merged),
        *(Styled(sentence) for sentence in from_kept_to_augmented(annotations, manifest, merged)),
        *(Styled(f"! {sentence}") for sentence in annotation_losses(manifest)),
        *(Styled(_round(number, *round_)) for number, round_ in enumerate(later_rounds, 2)),
        calls_view(kept_calls(read_rows(annotations, columns), manifest.config.method)),
        score_table(evaluation),
        *_legend(evaluation),
        "",
        Styled(verdict(evaluation), style="bold"),
    )


def _round(number: int, annotations: Path, augmented: Path) -> str:
    """What a later round added, in a sentence."""
    counts = read_finished(annotations).counts
    kept = sum(tool.kept for tool in counts.tools.values()) if counts else 0
    merged = read_model(augmented / MANIFEST, MergeManifest)
    return (
        f"Round {number}: the model of the round before writes {kept:,} kept calls; C* of all rounds has "
        f"{merged.calls:,} calls in {merged.texts - merged.plain_texts:,} texts."
    )


def funnel_table(manifest: AnnotationManifest, merged: MergeManifest) -> Table:
    """From texts to the calls in C*, one line per tool (paper section 2)."""
    counts = manifest.counts
    table = _table(f"From {counts.texts if counts else 0:,} texts to C*", *_FUNNEL.values(), "in C*")
    tools = counts.tools if counts else {}
    for tool in in_order(tools):
        examples = merged.tools.get(tool)
        numbers = [getattr(tools[tool], name) for name in _FUNNEL] + [examples.calls if examples else 0]
        table.add_row(tool, *(f"{number:,}" for number in numbers))
    return table


def from_kept_to_augmented(
    annotations: Path, manifest: AnnotationManifest, merged: MergeManifest
) -> Iterator[str]:
    """Why C* has fewer calls than annotate has kept, in sentences; the numbers add up."""
    tau_f = {tool: examples.tau_f for tool, examples in merged.tools.items()}
    rule = input_rule_of({annotations: manifest})
    reaching = distinct = 0
    for row in rows_reaching((annotations,), tau_f):
        reaching += sum(call["gain"] >= tau_f.get(call["tool"], float("inf")) for call in row["calls"])
        distinct += len(merging.kept_calls(row["calls"], row["text"], tau_f, rule))
    kept = sum(tool.kept for tool in manifest.counts.tools.values()) if manifest.counts else 0
    config = merged.config
    capped = any(examples.candidates > config.max_examples for examples in merged.tools.values())
    rest = "for the cap of {0:,} texts a tool" if capped else ""
    if config.one_call_per_position:
        rest += " or because another tool's call stands there" if capped else "where another tool has a call"
    reasons = {
        "below merge's tau_f": kept - reaching,
        "less useful than another call of the same tool at the same position": reaching - distinct,
        rest.format(config.max_examples): distinct - merged.calls,
    }
    texts = merged.texts - merged.plain_texts
    yield f"C* has {merged.calls:,} calls in {texts:,} texts. Of {kept:,} kept calls it leaves out:"
    yield from (f"  {number:>6,}  {reason}" for reason, number in reasons.items() if number)


def score_table(evaluation: Evaluation) -> Table:
    """Percent of questions answered correctly with the 95 % interval, a line per benchmark."""
    columns = _COLUMNS | {label: label.replace("-", " ") for label in _later_rounds(evaluation)}
    models = {label: evaluation.models[label] for label in columns if label in evaluation.models}
    last = models.get("toolformer")
    title = "Questions answered correctly: percent, 95 % interval"
    table = _table(title, *(columns[label] for label in models), "with a call")
    for name in dict.fromkeys(name for model in models.values() for name in model.benchmarks):
        called = last.benchmarks[name].calls if last and name in last.benchmarks else 0
        table.add_row(name, *(_score(model.benchmarks.get(name)) for model in models.values()), str(called))
    perplexities = [model.perplexity for model in models.values()]
    table.add_row("perplexity", *("–" if p is None else f"{p:.2f}" for p in perplexities), "")
    return table


def _later_rounds(evaluation: Evaluation) -> list[str]:
    """The labels of the models of later rounds, in their order."""
    labels = [label for label in evaluation.models if _LATER_ROUND.fullmatch(label)]
    return sorted(labels, key=lambda label: int(label.partition("-")[2]))


def verdict(evaluation: Evaluation) -> str:
    """What fine-tuning on calls brought, in a sentence."""
    if "toolformer" not in evaluation.models:
        return "There is no result of Toolformer."
    results = evaluation.models["toolformer"].benchmarks
    names = [name for name in results if name != _NO_TOOL]
    asked = sum(results[name].n for name in names)
    right = {label: _right(model, names) for label, model in evaluation.models.items()}
    others = {
        "base": "the base model answers {}",
        "plain": "the base model fine-tuned on the same texts without calls {}",
        "disabled": "Toolformer without its calls {}",
    }
    compared = [phrase.format(f"{right[label]:,}") for label, phrase in others.items() if label in right]
    compared += [
        f"the model of {label.replace('-', ' ')} {right[label]:,}" for label in _later_rounds(evaluation)
    ]
    sentence = f"Toolformer answers {right['toolformer']:,} of {asked:,} questions that need a tool"
    if compared:
        sentence += f"; {', '.join(compared)}"
    tests = [results[name].paired for name in names]
    if right["toolformer"] <= max((right[label] for label in others if label in right), default=-1):
        return f"{sentence}: the calls did not help here."
    if tests and all(test is not None and test.p >= _SIGNIFICANT for test in tests):
        return f"{sentence}: so small a difference may be chance."
    return f"{sentence}."


def prompts_to_try(evaluate: EvaluateConfig) -> Iterator[tuple[Question, str]]:
    """For each benchmark a question that this run answered right, and the answer with its call.

    It is the question with the shortest answer, without a failed call, and with a call of its tool alone.
    """
    path = predictions_file(evaluate.output, "toolformer")
    if not path.exists():
        return
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    found = read_inputs(evaluate.benchmarks, tuple(evaluate.generation.tools.specs), first_line=True)
    for benchmark in found.benchmarks:
        questions = {question.id: question for question in benchmark.questions}
        usable = [
            row
            for row in rows
            if row["benchmark"] == benchmark.name
            and row["right"]
            and not row["failed"]
            and row["id"] in questions
            and [call["tool"] for call in row["calls"]] == [*filter(None, [questions[row["id"]].tool])]
        ]
        if usable:
            best = min(usable, key=lambda row: len(row["prediction"]))
            yield questions[best["id"]], best["annotated"]


def commands_to_try(evaluate: EvaluateConfig, command: str) -> Iterator[str]:
    """Commands to paste for `prompts_to_try`, a line each; `command` is the `generate` of this model."""
    for question, _ in prompts_to_try(evaluate):
        options = [f"--tools-off {' '.join(sorted(question.tools_off))}"] if question.tools_off else []
        options += [f"--date {question.date}"] if question.date else []
        options += ["--stop ."] if question.tool is None else []  # else the text goes on until its limit
        yield " ".join([command, shlex.quote(question.prompt), *options])


def _legend(evaluation: Evaluation) -> Iterator[Styled]:
    """What the columns do not say by themselves."""
    models = evaluation.models
    if "plain" in models:
        yield Styled("no calls: fine-tuned on the same texts without their calls; disabled: calls are off;")
        yield Styled("with a call: questions for which Toolformer has called a tool;")
    if any(_NO_TOOL in model.benchmarks for model in models.values()):
        yield Styled(f"{_NO_TOOL}: questions without need of a tool; they end as sentences of the pages do;")
    if any(model.perplexity is not None for model in models.values()):
        yield Styled("perplexity: on held-out pages, <API> has probability 0 (paper section 4.3).")


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0)
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _score(result: BenchmarkResult | None) -> str:
    if result is None:
        return "–"
    low, high = result.interval or wilson(round(result.accuracy * result.n), result.n)
    return f"{100 * result.accuracy:.0f}, {100 * low:.0f}–{100 * high:.0f}"


def _right(model: ModelResult, names: Sequence[str]) -> int:
    results = [model.benchmarks[name] for name in names if name in model.benchmarks]
    return sum(round(result.accuracy * result.n) for result in results)
