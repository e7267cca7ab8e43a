"""The annotation engine beside the plain procedure, and with each of its shortcuts switched off.

    python -m bench.annotate [--model demo gpt2-small] [--tool Calculator QA] [--texts 64] [--plain-texts 8]

Same texts, model, seeds and tools for all; no Ray. The plain procedure (bench/plain.py) has the engine's
random numbers, so the same calls must be kept: that is checked, and the largest difference of a loss printed.
For each contestant: texts/s, candidates/s, tokens fed by phase per token of the least work, FLOP/s as a share
of a matrix product's in the same run, peak memory. Out: a table, and runs/bench/annotate.json.

`demo` is the demo's annotator. `gpt2-small` is GPT-2's smallest with random weights and the demo's
tokenizer, taught by hand which token follows which in a calculator's call: it writes calls, but none helps
except by chance, so it measures speed and says nothing of quality. Calculator and calendar are real; the
other tools answer from what the demo's pages say, or with a phrase, at no cost: the model is measured alone.
Prompts and tables are made before the clock starts. The peak is the whole process's, libraries included.

With `--against vllm --vllm-python PYTHON` the same job goes through vLLM too (bench/vllm_job.py), in an
environment of its own. It draws with other random numbers; so its losses and kept calls in the table are
those of the engine's own calls, scored by vLLM. With `--processes N` everyone also runs as N processes at
once (bench/processes.py), which is how annotating actors share a machine without a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import results
from bench.measuring import matrix_rate
from bench.plain import Plain
from bench.processes import in_processes
from bench.systems import BATCH, Run, run_engine, run_plain, without_shortcuts
from bench.vllm.job import contest
from bench.workload import Subject, make_model
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import Annotation, Call, Cost, Phase, Text
from pipeline.engine.compiling import compile_layers
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import ScoredText, kept, score_calls
from pipeline.method.sampling import SamplingRequest, sample_calls
from pipeline.syntax.prompts import load_prompt
from tools_service.tools.client import LocalTools
from tools_service.tools.contract import TOOL_NAMES, ToolName


@dataclass(frozen=True)
class Scale:
    """What the contestants' numbers are put in relation to."""

    least: Sequence[Mapping[Phase, Cost]]
    """The least work of each text, by phase."""
    shape: ModelShape
    rate: float
    """FLOP/s of a matrix product."""

    def row(self, run: Run) -> dict[str, Any]:
        """The numbers to print and to keep."""
        count, wall = len(run.calls), run.took["wall_s"]
        fed = {phase: cost.tokens + cost.padding for phase, cost in run.usage.items()}
        least = sums(self.least[:count])
        flops = self.shape.flops(sum(run.usage.values(), Cost()))
        return {
            "contestant": run.name,
            "texts": count,
            "texts_per_s": round(count / wall, 3),
            "texts_per_cpu_s": round(count / run.took["cpu_s"], 3),
            "candidates_per_s": round(run.candidates / wall, 2),
            "tokens_per_text": round(sum(fed.values()) / count, 1),
            "forwards_per_text": round(run.forwards / count, 2),
            "padding_per_text": round(sum(cost.padding for cost in run.usage.values()) / count, 1),
            "per_least": round(sum(fed.values()) / sum(cost.tokens for cost in least.values()), 4),
            "tokens_by_phase": fed,
            "least_by_phase": {phase: cost.tokens for phase, cost in least.items()},
            "flops": flops,
            "flops_least": sum(map(self.shape.flops, least.values())),
            "share_of_matrix_rate": round(flops / wall / self.rate, 4),
            "peak_mib": round(run.took["peak_mib"], 1),
        }


def sums(texts: Iterable[Mapping[Phase, Cost]]) -> dict[Phase, Cost]:
    """Costs by phase, added up."""
    total: dict[Phase, Cost] = {}
    for one in texts:
        for phase, cost in one.items():
            total[phase] = total.get(phase, Cost()) + cost
    return total


def least_work(annotation: Annotation) -> dict[Phase, Cost]:
    """Of one text, by phase."""
    return sums({part.phase: part.lower_bound} for part in annotation.work)


def same_calls(
    one: Sequence[Sequence[Call]], other: Sequence[Sequence[Call]], tau_f: float
) -> dict[str, Any]:
    """Whether two procedures kept the same calls of the same texts, and how far apart the losses are of what
    both scored."""
    first, second = _by_name(one), _by_name(other)
    keep = [{name for name, call in named.items() if kept(call, tau_f)} for named in (first, second)]
    both = [(first[name], second[name]) for name in first.keys() & second.keys()]
    pairs = [(a.l_plus, b.l_plus) for a, b in both] + [(a.l_empty, b.l_empty) for a, b in both]
    pairs += [(a.l_call, b.l_call) for a, b in both if a.l_call is not None and b.l_call is not None]
    return {
        "scored": [len(first), len(second)],
        "scored_by_both": len(both),
        "kept": [len(part) for part in keep],
        "kept_by_both": len(keep[0] & keep[1]),
        "same_kept": keep[0] == keep[1],
        "largest_difference_of_a_loss": max((abs(a - b) for a, b in pairs), default=0.0),
    }


def _by_name(texts: Sequence[Sequence[Call]]) -> dict[Any, Call]:
    return {
        (number, call.tool, call.position, call.input, call.result): call
        for number, calls in enumerate(texts)
        for call in calls
    }


class Watched(Annotator):
    """Keeps what was executed, by text id."""

    executed: dict[int, tuple[Text, Sequence[ExecutedCall]]]

    def _score(self, works: Any) -> list[ScoredText]:
        self.executed = {work.text.text_id: (work.text, work.executed) for work in works}
        return super()._score(works)


def agreement(
    model: LanguageModel, half: LanguageModel, tools: LocalTools, method: MethodConfig, texts: Sequence[Text]
) -> dict[str, Any]:
    """The calls that the float32 model drew, scored by it and by the same model in bfloat16; and how many
    calls that one draws itself, with the same random numbers."""
    [tool] = method.tools
    annotator = Watched(model, tools, method)
    exact = [one.calls for one in annotator.annotate(texts)]
    given = [annotator.executed[text.text_id] for text in texts]
    floor = {tool: method.of(tool).tau_f}
    rounded = score_calls(half, [text for text, _ in given], [calls for _, calls in given], floor)
    prompts = {tool: load_prompt(tool, method.prompts)}
    drawn = sample_calls(half, [SamplingRequest(text, tool) for text in texts], prompts, method)
    return same_calls(exact, [one.calls for one in rounded], floor[tool]) | {
        "drawn": [sum(len(calls) for _, calls in given), sum(len(one.candidates) for one in drawn)]
    }


def compare(name: str, tool: ToolName, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants for one model and tool."""
    subject = Subject.of(name, tool, args)
    model, method, texts, settings = subject.model, subject.method, subject.texts, subject.settings
    rate = matrix_rate(model.device, model.model.dtype)
    print(f"\n{name}, {tool}, {settings}\nmatrix product: {rate / 1e12:.3f} TFLOP/s in {model.model.dtype}")
    engine, found = run_engine("engine", subject.annotator(), model, texts)
    scale = Scale([least_work(one) for one in found], ModelShape.of(model.model), rate)
    rows = []

    def report(run: Run, scored: Sequence[Sequence[Call]] | None = None, **more: Any) -> None:
        scored = run.calls if scored is None else scored
        same = same_calls(engine.calls[: len(run.calls)], scored, settings.tau_f)
        rows.append(scale.row(run) | {"beside_engine": same} | more)
        print(line(rows[-1]), flush=True)

    report(engine)
    if args.plain_texts:
        report(run_plain(Plain(model, subject.tools, method), model, texts[: args.plain_texts]))
    if args.against == "vllm":
        vllm = contest(args.vllm_python, subject, engine.calls)
        report(vllm.run, vllm.scored, vllm=vllm.about)
    if args.processes > 1:
        alike = in_processes(args.processes, name, tool, args)
        report(alike.engine)
        if alike.plain:
            report(alike.plain)
        if alike.vllm:
            report(alike.vllm.run, alike.vllm.scored, vllm=alike.vllm.about)
    for run in without_shortcuts(model, subject.tools, method, texts) if args.shortcuts else ():
        report(run)
    if args.compile and compile_layers(model.model):
        subject.annotator().annotate(texts[:BATCH])
        report(run_engine("norms and MLPs compiled", subject.annotator(), model, texts)[0])
    out = {"model": name, "tool": tool, "method": settings.model_dump(), "shape": scale.shape.model_dump()}
    out |= {"matrix_flops_per_s": rate, "contestants": rows, "engine_over": ratios(rows)}
    for other, ratio in out["engine_over"].items():
        print(f"texts/s, each in as many processes as suit it best: {ratio:.2f} times those of {other}")
    if args.agreement:
        half = make_model(name, args.device, "bfloat16", args.max_batch_tokens)
        out["bfloat16"] = agreement(model, half, subject.tools, method, texts)
        print(f"bfloat16: {out['bfloat16']}")
    return out


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The engine's texts/s over the others', each in as many processes as suit it best."""
    best: dict[str, float] = {}
    for row in rows:
        name = row["contestant"].split(",")[0]
        best[name] = max(best.get(name, 0.0), row["texts_per_s"])
    return {
        other: round(best["engine"] / best[other], 3)
        for other in ("plain procedure", "vLLM")
        if other in best
    }


def line(row: dict[str, Any]) -> str:
    """A contestant in a line."""
    same = row["beside_engine"]
    kept_calls = f"kept {same['kept'][1]}, {'the same' if same['same_kept'] else 'NOT THE SAME'}"
    return (
        f"{row['contestant']:38} {row['texts']:4} texts {row['texts_per_s']:8.3f}/s "
        f"{row['texts_per_cpu_s']:8.3f}/cpu-s {row['candidates_per_s']:8.1f} candidates/s "
        f"{row['tokens_per_text']:8.0f} tokens/text = {row['per_least']:6.3f} x least, "
        f"{100 * row['share_of_matrix_rate']:5.1f} % of the matrix rate, {row['peak_mib']:6.0f} MiB; "
        f"{kept_calls}, losses within {same['largest_difference_of_a_loss']:.0e}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The annotation engine beside the plain procedure.")
    parser.add_argument("--model", nargs="+", default=["demo"], help="demo, gpt2-small, folders or hub names")
    parser.add_argument("--tool", nargs="+", choices=TOOL_NAMES, default=["Calculator", "QA"])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument(
        "--plain-texts", type=int, default=4, help="how many of them the plain procedure gets"
    )
    parser.add_argument("--corpus", nargs="+", default=["demo/pages"])
    parser.add_argument("--max-tokens", type=int, default=112, help="of a text; the demo recipe's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-tokens", type=int, default=ModelConfig().max_batch_tokens)
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--k", type=int, help="instead of the paper's")
    parser.add_argument("--m", type=int, help="instead of the paper's")
    parser.add_argument("--tau-s", type=float, help="instead of the paper's")
    parser.add_argument(
        "--no-shortcuts", dest="shortcuts", action="store_false", help="the engine only whole"
    )
    parser.add_argument(
        "--agreement", action="store_true", help="score the float32 model's calls in bfloat16 too"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="the engine also as model.compile has it, from its second batch on",
    )
    parser.add_argument("--against", choices=("vllm",), help="the same job, in --dtype, through vLLM too")
    parser.add_argument("--vllm-python", help="the interpreter of an environment that has vLLM")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="also everyone in so many, each with its share of cores",
    )
    args = parser.parse_args()
    if args.processes > 1 and args.device != "cpu":
        parser.error("--processes shares the cores out: with --device cpu only")
    if (args.against is None) != (args.vllm_python is None):
        parser.error("--against vllm and --vllm-python go together")
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = [compare(name, tool, args) for name in args.model for tool in args.tool]
    file = results.write("annotate", vars(args) | {"torch_threads": torch.get_num_threads()}, runs)
    print(f"written: {file}")


if __name__ == "__main__":
    main()
