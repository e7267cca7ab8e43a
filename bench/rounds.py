"""What a second round brings in the demo world: calls kept, correct calls, and held-out accuracy.

    python -m bench.rounds [--run runs/demo] [--without-prompts]

In: a finished run of the demo. Its fine-tuned model annotates the demo's pages again, with the tools' prompts
or without; the calls of both rounds are united, and the base model is fine-tuned on them. Each step resumes
or is skipped, so the command can be interrupted and given again. Out: two tables on standard output and
runs/bench/rounds.json.

- Calls: kept ones, and those of them that are the correct call at a correct position, by the generator of
  the pages (bench/truth.py). In annotations, equal calls (tool, position, input) count once; in C* a tool has
  at most one call at a position.
- Questions of the demo answered correctly, with 95 % intervals (Wilson), and McNemar's exact test of round 2
  against round 1 on the same questions; perplexity on the held-out pages with calls disabled.

Two rounds lose something on a set where round 1 is significantly better (p < 0.05).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.truth import compare
from demo import generate
from pipeline.augmentation.annotated_rows import rows_of
from pipeline.augmentation.merge import annotated_thresholds, merge, merge_problem, mixture_of, thresholds
from pipeline.base.config import MergeConfig, MethodConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.base.records import Annotation, Call, Document, Text
from pipeline.cli import recipes
from pipeline.cli.demo import chained
from pipeline.cli.recipes import Recipe, rounds_of, written_below
from pipeline.evaluation.results import Evaluation
from pipeline.storage.manifest import read_finished
from tools_service.contract.declarations import in_order

_SIGNIFICANT = 0.05
Counts = Counter[tuple[str, str]]
"""By tool and what: calls "kept", at a correct "place", "right" there."""


def rounds(run: Path, *, prompts: bool) -> list[Recipe]:
    """The first and the second round of the demo in `run`; a second one without prompts has a folder of its
    own."""
    recipe = chained(written_below(recipes.demo(), run))
    recipe = recipe.model_copy(update={"rounds": 2, "round_prompts": prompts})
    if not prompts:
        elsewhere = recipe.evaluate.output.parent / "without-prompts" / recipe.evaluate.output.name
        recipe = recipe.model_copy(
            update={"evaluate": recipe.evaluate.model_copy(update={"output": elsewhere})}
        )
    return rounds_of(recipe)


def run_second(second: Recipe) -> None:
    """Annotate, merge and fine-tune what is not finished."""
    from pipeline.annotation.run import annotate
    from pipeline.finetuning.run import finetune
    from pipeline.runtime.connection import one_local_cluster

    with one_local_cluster():
        annotate(second.annotate)
        if merge_problem(second.merge.output) is not None:  # a new one would have another date
            merge(second.merge)
        finetune(second.finetune)


def evaluated(first: Recipe, second: Recipe) -> Evaluation:
    """The models of both rounds on the demo's questions and held-out pages."""
    from pipeline.evaluation.run import evaluate

    output = second.finetune.output.with_name("evaluation.json")

    def of(one: Recipe, compare_with: str | None) -> EvaluateConfig:
        update = {"output": output, "compare_with": compare_with, "disabled_perplexity": True}
        return one.evaluate.model_copy(update=update)

    return evaluate({"round-1": of(first, None), "round-2": of(second, "round-1")})


def annotations(folders: Sequence[Path], config: MergeConfig, *, merged: bool) -> Iterator[Annotation]:
    """The texts of annotation folders with the calls of all of them; `merged`: those that C* has."""
    sources = {folder: read_finished(folder) for folder in folders}
    tau_f = thresholds(config, annotated_thresholds(sources))
    with rows_of(folders, tau_f, "unite") as rows:
        mixture = mixture_of(rows, config, tau_f, sources)
        for row in rows.read():
            calls = mixture.calls(row) if merged else [Call(**call) for call in row["calls"]]
            text = Text(row["text_id"], Document(""), row["text"])
            yield Annotation(text, "annotated", calls=tuple(calls))


def count(first: Recipe, second: Recipe) -> dict[str, Counts]:
    """The calls of round 1, of round 2 alone, and of both; of the first and of both also those in C*."""
    truth, method = generate.ground_truth(), first.annotate.method
    both = second.merge.annotations
    folders = {"round 1": both[:1], "round 2 alone": both[1:], "both rounds": both}
    counts = {
        name: compare(annotations(paths, first.merge, merged=False), truth, method)
        for name, paths in folders.items()
    }
    for name in ("round 1", "both rounds"):
        found = annotations(folders[name], first.merge, merged=True)
        counts[f"C* of {name}"] = compare(found, truth, method)
    return counts


def calls_table(counts: dict[str, Counts], method: MethodConfig) -> Iterator[str]:
    """Kept and correct calls by tool, as Markdown."""
    yield f"| kept, of these right | {' | '.join(counts)} |"
    yield "|---" * (len(counts) + 1) + "|"
    tools = in_order(method.tools)
    for tool in tools:
        yield _row(tool, [f"{of[tool, 'kept']:,}, {of[tool, 'right']:,}" for of in counts.values()])
    totals = [f"{total(of, tools, 'kept'):,}, {total(of, tools, 'right'):,}" for of in counts.values()]
    yield _row("all", totals)


def total(counts: Counts, tools: Sequence[str], what: str) -> int:
    """The sum over the tools."""
    return sum(counts[tool, what] for tool in tools)


def accuracy_table(evaluation: Evaluation) -> Iterator[str]:
    """Percent of questions answered correctly by the models of both rounds, as Markdown."""
    first, second = (evaluation.models[label] for label in ("round-1", "round-2"))
    yield "| percent right (95 %) | round 1 | round 2 | p |"
    yield "|---|---|---|---|"
    for name, result in second.benchmarks.items():
        scores = [_score(of.accuracy, of.interval) for of in (first.benchmarks[name], result)]
        yield _row(name, [*scores, f"{result.paired.p:.3f}" if result.paired else "–"])
    perplexities = [f"{model.perplexity:.3f}" if model.perplexity else "–" for model in (first, second)]
    yield _row("perplexity", [*perplexities, ""])


def lost(evaluation: Evaluation) -> list[str]:
    """The sets on which round 1 is significantly better."""
    return [
        name
        for name, result in evaluation.models["round-2"].benchmarks.items()
        if result.paired and result.paired.c > result.paired.b and result.paired.p < _SIGNIFICANT
    ]


def _score(accuracy: float, interval: tuple[float, float] | None) -> str:
    low, high = interval or (accuracy, accuracy)
    return f"{100 * accuracy:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare one and two rounds in the demo world.")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--without-prompts", action="store_true")
    arguments = parser.parse_args()
    first, second = rounds(arguments.run, prompts=not arguments.without_prompts)
    read_finished(first.annotate.output)
    run_second(second)
    evaluation = evaluated(first, second)
    counts = count(first, second)
    tools = first.annotate.method.tools
    print(*calls_table(counts, first.annotate.method), "", *accuracy_table(evaluation), "", sep="\n")
    before, after = (total(counts[name], tools, "right") for name in ("C* of round 1", "C* of both rounds"))
    print(f"right calls in C*: {before:,} after one round, {after:,} after two")
    print(f"significantly worse after two rounds: {', '.join(lost(evaluation)) or 'nothing'}")
    measured: dict[str, Any] = {
        "calls": {
            name: {f"{tool} {what}": n for (tool, what), n in of.items()} for name, of in counts.items()
        },
        "evaluation": evaluation.model_dump(),
    }
    name = "rounds"
    configuration = {"run": arguments.run, "prompts": not arguments.without_prompts}
    print(results.write(name, configuration, measured))


if __name__ == "__main__":
    main()
