"""What a command has lost, in sentences for its end; `plan` says it before.

In: the manifest or result of a command, or a plan. Out: lines of text, each with the number, the reason
and the option to change. A command that lost nothing has no lines. Everything comes from the files, so a
run that was resumed, or had finished before, says the same. Nothing is read or measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.augmentation.merge import MergeManifest, too_few_plain_texts
from pipeline.augmentation.plain_texts import plain_texts_for
from pipeline.base.config import AnnotateConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.evaluation.results import ModelResult
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest
from pipeline.inference.generation import Generation
from pipeline.planning.estimate import Plan
from pipeline.report.reasons import explain
from pipeline.scoring.manifest import ScoreManifest
from pipeline.storage.counts import DAMAGED_FILE, Counts, ToolCounts
from pipeline.storage.manifest import AnnotationManifest
from tools_service.contract.tool import TRANSIENT

_MAX_SHOWN = 5  # reasons, or names of files, in one line
_NO = "no: "
_TOOL = "tool: "


def annotation_losses(manifest: AnnotationManifest) -> Iterator[str]:
    """What a finished run of annotate lost."""
    counts, config = manifest.counts, manifest.config
    yield from manifest.left_out
    if counts is None:
        return
    yield from _damaged(counts.reasons.get("skipped", {}), counts.damaged_files)
    yield from _skipped(counts.reasons.get("skipped", {}), counts.texts, "")
    if reasons := counts.reasons.get("failed"):
        yield f"{_texts(sum(reasons.values()))} failed ({_shown(reasons)}); --retry-failed tries them again"
    yield from _call_syntax(counts.call_syntax, config, "")
    if not counts.calls:
        yield f"Nothing could be annotated: {_why_nothing(counts)}"
    for tool, sums in counts.tools.items():
        yield from _selection(tool, sums.selection, "")
        yield from _tool(tool, sums, config)


def merge_losses(manifest: MergeManifest) -> Iterator[str]:
    """What merge left out of C*, and how near the calls of a tool without examples came."""
    config = manifest.config
    merged = {source.slice for source in manifest.sources if source.slice is not None}
    for count in sorted({int(slice_.partition("/")[2]) for slice_ in merged}):
        present = sum(slice_.endswith(f"/{count}") for slice_ in merged)
        if present < count:
            yield f"{count - present} of {count} slices are missing (--missing-slices allows it)"
    for tool, examples in manifest.tools.items():
        lost = examples.candidates - examples.examples
        if not examples.candidates:
            yield f"{tool}: no call reaches tau_f = {examples.tau_f:g}, {_merge_nearest(tool, manifest)}"
        elif examples.candidates > config.max_examples:
            yield (
                f"{tool}: {_texts(lost)} of {examples.candidates:,} left out of its examples; "
                f"--max-examples is {config.max_examples}"
            )
        elif lost:
            yield f"{tool}: {_texts(lost)} kept only calls of other tools (--one-call-per-position)"
    wanted = plain_texts_for(config.plain_share, manifest.texts - manifest.plain_texts)
    if manifest.plain_texts < wanted:
        yield too_few_plain_texts(manifest.plain_texts, wanted)
    if not manifest.texts:
        yield "C* is empty: there is nothing to fine-tune on"


def finetune_losses(manifest: FinetuneManifest) -> Iterator[str]:
    """Which texts of C* were not trained on, or not to their end."""
    texts, config = manifest.texts, manifest.config
    if number := texts.get("truncated"):
        yield f"{_texts(number)} cut at {config.sequence_length} tokens; --sequence-length sets the limit"
    if number := texts.get("equal_to_held_out"):
        yield f"{_texts(number)} not trained on, because a held-out text is equal"
    seen, trained_on = config.max_steps * config.batch_size, texts.get("trained_on", 0)
    if seen < trained_on:
        yield (
            f"{_texts(trained_on - seen)} of {trained_on:,} not trained on: --max-steps is {config.max_steps}"
            f", --batch-size {config.batch_size}"
        )


def evaluation_losses(result: ModelResult, config: EvaluateConfig) -> Iterator[str]:
    """Tools that were missing, questions and answers that could not be right, calls that failed, and
    held-out passages that were skipped."""
    generation = config.generation
    if missing := set(result.tools_off) - set(generation.tools_off):
        yield f"{', '.join(sorted(missing))} switched off: not available here (see the warnings above)"
    for name, benchmark in result.benchmarks.items():
        if benchmark.not_asked:
            number = sum(benchmark.not_asked.values())
            shown = _shown(benchmark.not_asked)
            yield f"{name}: {number:,} of {benchmark.n:,} questions could not be asked, so wrong ({shown})"
        if benchmark.answers_left_out:
            yield (
                f"{name}: {benchmark.answers_left_out:,} answers that the scoring can never meet are left "
                f"out; {benchmark.without_answer:,} questions have no other and are wrong"
            )
        if benchmark.left_out:
            yield f"{name}: {_shown(benchmark.left_out)}: in the files, but not asked"
        if benchmark.failed_calls:
            number = sum(benchmark.failed_calls.values())
            yield f"{name}: {_calls(number)} failed ({_shown(benchmark.failed_calls)})"
        if result.compared_with is not None and benchmark.paired is None:
            yield f"{name}: not compared with {result.compared_with}, which has no answers to these questions"
    calls = sum(benchmark.calls for benchmark in result.benchmarks.values())
    if result.benchmarks and not calls and generation.k and not generation.disabled:
        yield f"no question got a call; --generation.k is {generation.k}, a larger one makes calls likelier"
    wanted = result.running_texts or config.perplexity
    measured = generation.disabled or config.plain_perplexity or config.disabled_perplexity
    if wanted and generation.k and not measured:
        yield "perplexity: a dash, because calls are on (paper section 4.3); it needs --generation.disabled"
    if result.held_out is not None and result.held_out.skipped:
        yield f"perplexity: {result.held_out.skipped:,} passages of the held-out files were skipped"


def score_losses(manifest: ScoreManifest) -> Iterator[str]:
    """Lines without a score, by reason."""
    if number := manifest.lines - manifest.scored:
        yield f"{number:,} of {manifest.lines:,} lines without a score ({_shown(manifest.reasons)})"


def generation_losses(generations: Iterable[Generation]) -> Iterator[str]:
    """Calls that failed, and continuations that the context ended."""
    generations = list(generations)
    reasons = Counter(call.reason for generation in generations for call in generation.failed)
    if reasons:
        yield f"{_calls(reasons.total())} failed ({_shown(dict(reasons.most_common()))})"
    full = sum(generation.stop_reason == "context" for generation in generations)
    if full:
        yield f"{full:,} of {len(generations):,} continuations ended where the model's context is full"


def plan_losses(plan: Plan) -> Iterator[str]:
    """What annotate is going to lose, judged by the sample of the corpus."""
    yield from plan.left_out
    tried = max((sum(rules.values()) for rules in plan.selection.values()), default=0)
    texts, suffix = tried + sum(plan.skipped.values()), " of the sample"
    yield from _damaged(plan.skipped, ())
    yield from _skipped(plan.skipped, texts, suffix)
    yield from _call_syntax(plan.call_syntax, plan.config, suffix)
    if not any(tool.texts for tool in plan.tools.values()):
        yield "Nothing can be annotated: no tool would be tried on any text of the sample"
    for tool, selection in plan.selection.items():
        yield from _selection(tool, selection, suffix)


def _damaged(skipped: Mapping[str, int], names: Sequence[str]) -> Iterator[str]:
    if number := skipped.get(DAMAGED_FILE):
        named = f": {', '.join(names[:_MAX_SHOWN])}{', …' if number > _MAX_SHOWN else ''}" if names else ""
        files = "1 file was" if number == 1 else f"{number:,} files were"
        yield f"{files} not read to the end (damaged or cut off){named}. Restore and annotate again"


def _skipped(reasons: Mapping[str, int], texts: int, suffix: str) -> Iterator[str]:
    reasons = {kind: number for kind, number in reasons.items() if kind != DAMAGED_FILE}
    if reasons:
        options = [explain("skipped", kind).advice for kind in list(reasons)[:_MAX_SHOWN]]
        advice = "".join(f"; {option}" for option in dict.fromkeys(options) if option)
        yield f"{_texts(sum(reasons.values()))} of {texts:,}{suffix} skipped ({_shown(reasons)}){advice}"


def _call_syntax(texts: int, config: AnnotateConfig, suffix: str) -> Iterator[str]:
    if texts and not config.corpus.skip_call_syntax:
        yield (
            f"{_texts(texts)}{suffix} with call syntax of their own, like [QA(…), which a model would learn "
            "as if a tool had answered; --corpus.skip-call-syntax skips them"
        )


def _why_nothing(counts: Counts) -> str:
    if not counts.status.get("no_calls"):
        return "every text was skipped or failed" if counts.texts else "the corpus has no text"
    if not any(tool.selected for tool in counts.tools.values()):
        return "no tool was tried on any text"
    return "no call was drawn, answered and scored"


def _selection(tool: str, rules: Mapping[str, int], suffix: str) -> Iterator[str]:
    """A tool that was tried on no text, with the main reason; else texts for which there was no room."""
    against = {rule.removeprefix(_NO): number for rule, number in rules.items() if rule.startswith(_NO)}
    texts = sum(rules.values())
    if against and sum(against.values()) == texts:
        reason, number = max(against.items(), key=lambda item: item[1])
        advice = explain("not selected", reason).advice
        yield (
            f"{tool} was tried on no text{suffix}: {reason} ({number:,} of {texts:,})"
            f"{f'; {advice}' if advice else ''}, or leave {tool} out of --method.tools"
        )
    elif no_room := against.get("context"):
        yield (
            f"{tool} was not tried on {_texts(no_room)} of {texts:,}{suffix}: no room beside its prompt; "
            f"{explain('not selected', 'context').advice}"
        )


def _tool(tool: str, sums: ToolCounts, config: AnnotateConfig) -> Iterator[str]:
    """Calls that a tool lost for a moment's reason; and a tool that was tried but kept no call."""
    reasons = {reason.removeprefix(_TOOL): number for reason, number in sums.discarded.items()}
    transient = {reason: number for reason, number in reasons.items() if reason in TRANSIENT}
    if transient:
        yield (
            f"{tool}: {_calls(sum(transient.values()))} lost because the tool failed ({_shown(transient)}); "
            "annotate again when it works"
        )
    if sums.selected and not sums.kept:
        yield f"{tool}: no call kept; {_nearest(tool, sums, config)}"


def _nearest(tool: str, sums: ToolCounts, config: AnnotateConfig) -> str:
    """The stage that no call of a tool passed, and what to change."""
    option, method = f"--method.{tool.lower()}", config.method.of(tool)
    if sums.scored:
        if sums.largest_gain is None:
            return f"none reaches tau_f = {method.tau_f:g}"
        return f"tau_f is {method.tau_f:g}, {_gain(sums.largest_gain, sums.largest_gain_is_bound, option)}"
    if not sums.positions:
        return f"no position has p(<API>) above tau_s = {method.tau_s:g}; lower {option}.tau-s"
    stage = "no draw is a call" if not sums.candidates else "no call has a result"
    stage = "no call with a result could be scored" if sums.executed else stage
    other_names = 2 * sums.discarded.get("wrong_tool", 0) > sums.draws and not method.given_name
    advice = f"; {option}.given-name draws after the name of the tool" if other_names else ""
    return f"{stage} ({_shown(sums.discarded)}){advice}"


def _merge_nearest(tool: str, manifest: MergeManifest) -> str:
    examples = manifest.tools[tool]
    if examples.largest_gain is None:
        return "and the annotations have no scored call of it, or do not record the largest gain"
    floor = examples.annotated_tau_f
    if floor is not None and examples.largest_gain >= floor:
        threshold = max(floor, float(_floor(examples.largest_gain)))
        nearest = f"and the largest gain is {_round(examples.largest_gain)} nats"
        return f"{nearest}: --tau-f {tool} {threshold:g} keeps it"
    return _gain(examples.largest_gain, examples.largest_gain_is_bound, f"--method.{tool.lower()}")


def _gain(gain: float, is_bound: bool, option: str) -> str:
    """The largest gain below tau_f, and the threshold that would keep a call."""
    if gain <= 0:
        return f"and no gain is above {_round(gain)} nats: the calls do not help this model"
    if is_bound:
        return (
            f"and no gain is above {_round(gain)} nats (an upper bound); annotate again with {option}.tau-f "
            f"below that, {_floor(gain / 2)} for example"
        )
    return (
        f"and the largest gain is {_round(gain)} nats; annotate again with {option}.tau-f {_floor(gain)} "
        "to keep such calls"
    )


def _round(gain: float) -> str:
    return f"{gain:.6g}"


def _floor(gain: float) -> str:
    """A threshold of two significant digits that `gain` reaches; 0 for a gain of 0 or less."""
    if gain <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(gain)) - 1)
    return f"{math.floor(gain / unit) * unit:.2g}"


def _texts(number: int) -> str:
    return f"{number:,} text{'s' * (number != 1)}"


def _calls(number: int) -> str:
    return f"{number:,} call{'s' * (number != 1)}"


def _shown(reasons: Mapping[str, int]) -> str:
    """The most common reasons with their numbers."""
    common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    more = sum(number for _, number in common[_MAX_SHOWN:])
    shown = [f"{number:,} x {reason}" for reason, number in common[:_MAX_SHOWN]]
    return ", ".join([*shown, f"{more:,} x other"] if more else shown)
