"""Compare the annotation engine with the plain procedure, and with its shortcuts switched off.

    python -m bench.annotate [--model demo gpt2-small] [--tool Calculator QA] [--texts 64] [--plain-texts 8]

All systems annotate the same texts with the same model, seeds and tools, without Ray. The plain
procedure (bench/plain.py) uses the engine's random numbers, so both must keep the same calls; this
is checked, and the largest difference between losses is printed. Reported for each system: texts/s,
candidates/s, tokens fed by phase relative to the lower bound, FLOP/s as a share of a matrix
product's in the same run, and the peak memory of the whole process, libraries included. Out: a
table, and runs/bench/annotate.json.

`demo` is the demo's annotator. `gpt2-small`, `llama-1b`, `gptj-6b` and `llama-8b` are shapes with
random weights and the demo's tokenizer; their embeddings are set by hand so that they write calculator
calls. Few of these calls help, so these models measure speed, not quality. Calculator and calendar
are real. The other tools look their answers up in the demo's pages, or return a fixed phrase, at no
cost. Prompts and tables are prepared before the clock starts.

On a GPU the tokens per second of each phase and their share of the matrix product's rate are printed,
from a second run that waits for the device after each phase. `--profile` prints them on a CPU, too,
and for a batch of texts the most expensive kernels and the share of each phase in which the device
has nothing to do (bench/device_profile.py).

`--given-name` also samples the texts with draws that are given the tool's name, and prints the share
of draws that are calls and the tokens run for each distinct call, with and without.

`--against vllm --vllm-python PYTHON` also runs the job in vLLM (bench/vllm/job.py), in an
environment of its own. vLLM draws other random numbers, so its losses and kept calls in the table
are those of the engine's calls, scored by vLLM. `--processes N` also runs every system in N
processes at once (bench/processes.py), as annotating actors share a machine without a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import results
from bench.device_profile import idle_shares, phase_rows, phases, traced
from bench.measuring import matrix_rate, measured
from bench.plain import PlainAnnotator
from bench.processes import run_in_processes
from bench.random_models import SHAPES
from bench.systems import BATCH, SystemRun, run_engine, run_plain, without_shortcuts
from bench.vllm.job import run_vllm
from bench.workload import PROMPTS, Workload, make_model
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import Call, Cost, Phase, Text
from pipeline.engine.compiling import compile_layers
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import ScoredText, kept, score_calls
from pipeline.method.sampling import SamplingRequest, sample_calls
from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.client import LocalTools


@dataclass(frozen=True)
class Scale:
    """The reference values that a system's numbers are divided by."""

    lower_bounds: Sequence[Mapping[Phase, Cost]]
    """The least work that each text needs, by phase."""
    shape: ModelShape
    rate: float
    """FLOP/s of a matrix product."""

    def row(self, run: SystemRun) -> dict[str, Any]:
        """The numbers of one run, to print and to write."""
        texts, wall_s = len(run.calls), run.timing["wall_s"]
        tokens_fed = {phase: cost.tokens + cost.padding for phase, cost in run.usage.items()}
        lower_bound = sum_costs(self.lower_bounds[:texts])
        flops = self.shape.flops(sum(run.usage.values(), Cost()))
        least_tokens = sum(cost.tokens for cost in lower_bound.values())
        return {
            "system": run.name,
            "texts": texts,
            "texts_per_s": round(texts / wall_s, 3),
            "texts_per_cpu_s": round(texts / run.timing["cpu_s"], 3),
            "candidates_per_s": round(run.candidates / wall_s, 2),
            "tokens_per_text": round(sum(tokens_fed.values()) / texts, 1),
            "forwards_per_text": round(run.forwards / texts, 2),
            "padding_per_text": round(sum(cost.padding for cost in run.usage.values()) / texts, 1),
            "tokens_per_lower_bound": round(sum(tokens_fed.values()) / least_tokens, 4),
            "tokens_by_phase": tokens_fed,
            "lower_bound_by_phase": {phase: cost.tokens for phase, cost in lower_bound.items()},
            "flops": flops,
            "flops_lower_bound": sum(map(self.shape.flops, lower_bound.values())),
            "share_of_matrix_rate": round(flops / wall_s / self.rate, 4),
            "peak_mib": round(run.timing["peak_mib"], 1),
        }


def sum_costs(costs: Iterable[Mapping[Phase, Cost]]) -> dict[Phase, Cost]:
    """Costs by phase, added up."""
    total: dict[Phase, Cost] = {}
    for by_phase in costs:
        for phase, cost in by_phase.items():
            total[phase] = total.get(phase, Cost()) + cost
    return total


def compare_calls(
    first: Sequence[Sequence[Call]], second: Sequence[Sequence[Call]], tau_f: float
) -> dict[str, Any]:
    """Whether two systems kept the same calls of the same texts, and how far the losses of the
    calls that both scored lie apart (nats)."""
    by_key = [_by_key(first), _by_key(second)]
    kept_keys = [{key for key, call in calls.items() if kept(call, tau_f)} for calls in by_key]
    both = [(by_key[0][key], by_key[1][key]) for key in by_key[0].keys() & by_key[1].keys()]
    losses = [(a.l_plus, b.l_plus) for a, b in both] + [(a.l_empty, b.l_empty) for a, b in both]
    losses += [(a.l_call, b.l_call) for a, b in both if a.l_call is not None and b.l_call is not None]
    return {
        "scored": [len(calls) for calls in by_key],
        "scored_by_both": len(both),
        "kept": [len(keys) for keys in kept_keys],
        "kept_by_both": len(kept_keys[0] & kept_keys[1]),
        "same_kept": kept_keys[0] == kept_keys[1],
        "max_loss_difference": max((abs(a - b) for a, b in losses), default=0.0),
    }


def _by_key(texts: Sequence[Sequence[Call]]) -> dict[Any, Call]:
    return {
        (number, call.tool, call.position, call.input, call.result): call
        for number, calls in enumerate(texts)
        for call in calls
    }


class RecordingAnnotator(Annotator):
    """An annotator that remembers which calls were executed, by text id."""

    executed: dict[int, tuple[Text, Sequence[ExecutedCall]]]

    def _score(self, works: Any) -> list[ScoredText]:
        self.executed = {work.text.text_id: (work.text, work.executed) for work in works}
        return super()._score(works)


def compare_bfloat16(
    model: LanguageModel, half: LanguageModel, tools: LocalTools, method: MethodConfig, texts: Sequence[Text]
) -> dict[str, Any]:
    """Score the calls of the float32 `model` with its bfloat16 version `half` too, and count the
    calls that each of the two draws with the same random numbers."""
    [tool] = method.tools
    annotator = RecordingAnnotator(model, tools, method)
    exact = [annotation.calls for annotation in annotator.annotate(texts)]
    recorded = [annotator.executed[text.text_id] for text in texts]
    tau_floor = {tool: method.of(tool).tau_f}
    rounded = score_calls(half, [text for text, _ in recorded], [calls for _, calls in recorded], tau_floor)
    prompts = {tool: load_prompt(tool, method.prompts)}
    drawn = sample_calls(half, [SamplingRequest(text, tool) for text in texts], prompts, method)
    return compare_calls(exact, [scored.calls for scored in rounded], tau_floor[tool]) | {
        "drawn": [sum(len(calls) for _, calls in recorded), sum(len(text.candidates) for text in drawn)]
    }


def compare_given_name(workload: Workload) -> dict[str, dict[str, float]]:
    """Sample the texts with draws after <API>, and with draws given the tool's name: the shares of
    draws that name the tool and that are calls, and the work for each distinct call."""
    [tool] = workload.method.tools
    prompts = {tool: load_prompt(tool, workload.method.prompts)}
    requests = [SamplingRequest(text, tool) for text in workload.texts]
    results = {}
    for given_name in (False, True):
        settings = workload.settings.model_copy(update={"given_name": given_name})
        method = workload.method.model_copy(update={tool.lower(): settings})
        with measured(workload.model.device) as timing:
            sampled = sample_calls(workload.model, requests, prompts, method)
        draws = sum(text.draws for text in sampled)
        candidates = sum(len(text.candidates) for text in sampled)
        calls = sum(call.draws for text in sampled for call in text.candidates)
        elsewhere = sum(text.discarded.get("wrong_tool", 0) for text in sampled)
        unlikely = sum(text.discarded.get("name_too_unlikely", 0) for text in sampled)
        tokens = dict.fromkeys(("positions", "decode"), 0)
        for work in (work for text in sampled for work in text.work):
            tokens[work.phase] += work.run.tokens
        results["given the name" if given_name else "after <API>"] = {
            "draws": draws,
            "named_share": round(1 - (elsewhere + unlikely) / max(1, draws), 4),
            "name_too_unlikely_share": round(unlikely / max(1, draws), 4),
            "call_share": round(calls / max(1, draws), 4),
            "candidates": candidates,
            "decode_tokens_per_candidate": round(tokens["decode"] / max(1, candidates), 2),
            "tokens_per_candidate": round(sum(tokens.values()) / max(1, candidates), 2),
            "candidates_per_s": round(candidates / timing["wall_s"], 2),
        }
    return results


def report_phases(workload: Workload, scale: Scale, *, kernels: bool) -> dict[str, Any]:
    """Annotate once more and print what each phase takes; with `kernels`, profile a batch as well."""
    model = workload.model
    with phases(model.device) as seconds:
        run, _ = run_engine("by phase", workload.annotator(), model, workload.texts)
    rows = phase_rows(seconds, run.usage, scale.shape, scale.rate)
    for phase, row in rows.items():
        print(
            f"{phase:10} {row['seconds']:9.2f} s {row['tokens_per_s']:12,.0f} tokens/s, "
            f"{100 * row['share_of_matrix_rate']:5.1f} % of the matrix rate"
        )
    numbers: dict[str, Any] = {"phases": rows}
    if kernels:
        batch = workload.texts[:BATCH]
        table, events = traced(lambda: workload.annotator().annotate(batch), model.device)
        numbers["idle_share"] = {phase: round(share, 4) for phase, share in idle_shares(events).items()}
        print(f"{table}\nshare of the time in which no kernel runs: {numbers['idle_share'] or 'no GPU'}")
    return numbers


def compare(name: str, tool: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run all systems on one model and tool."""
    workload = Workload.create(name, tool, args)
    model, method, texts, settings = workload.model, workload.method, workload.texts, workload.settings
    rate = matrix_rate(model.device, model.model.dtype)
    print(f"\n{name}, {tool}, {settings}\nmatrix product: {rate / 1e12:.3f} TFLOP/s in {model.model.dtype}")
    engine, annotations = run_engine("engine", workload.annotator(), model, texts)
    lower_bounds = [
        sum_costs({work.phase: work.lower_bound} for work in annotation.work) for annotation in annotations
    ]
    scale = Scale(lower_bounds, ModelShape.of(model.model), rate)
    rows = []

    def report(run: SystemRun, scored: Sequence[Sequence[Call]] | None = None, **more: Any) -> None:
        scored = run.calls if scored is None else scored
        comparison = compare_calls(engine.calls[: len(run.calls)], scored, settings.tau_f)
        rows.append(scale.row(run) | {"compared_with_engine": comparison} | more)
        print(format_row(rows[-1]), flush=True)

    report(engine)
    by_phase: dict[str, Any] = {}
    if args.profile or model.device.type == "cuda":
        by_phase = report_phases(workload, scale, kernels=args.profile)
    if args.plain_texts:
        plain = PlainAnnotator(model, workload.tools, method)
        report(run_plain(plain, model, texts[: args.plain_texts]))
    if args.against == "vllm":
        vllm = run_vllm(args.vllm_python, workload, engine.calls)
        report(vllm.run, vllm.scored, vllm=vllm.setup)
    if args.processes > 1:
        together = run_in_processes(args.processes, name, tool, args)
        report(together.engine)
        if together.plain:
            report(together.plain)
        if together.vllm:
            report(together.vllm.run, together.vllm.scored, vllm=together.vllm.setup)
    for run in without_shortcuts(model, workload.tools, method, texts) if args.shortcuts else ():
        report(run)
    if args.compile and compile_layers(model.model):
        workload.annotator().annotate(texts[:BATCH])
        report(run_engine("norms and MLPs compiled", workload.annotator(), model, texts)[0])
    numbers = {"model": name, "tool": tool, "method": settings.model_dump(), "matrix_flops_per_s": rate}
    numbers |= {"shape": scale.shape.model_dump(), "systems": rows, "engine_speedup": speedups(rows)}
    numbers |= by_phase
    for other, ratio in numbers["engine_speedup"].items():
        print(f"texts/s, each system with its best number of processes: {ratio:.2f} times those of {other}")
    if args.agreement:
        half = make_model(name, args.device, "bfloat16", args.max_batch_tokens)
        numbers["bfloat16"] = compare_bfloat16(model, half, workload.tools, method, texts)
        print(f"bfloat16: {numbers['bfloat16']}")
    if args.given_name:
        numbers["given_name"] = compare_given_name(workload)
        for way, row in numbers["given_name"].items():
            print(f"draws {way}: {row}")
    return numbers


def speedups(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The engine's texts/s over another system's, each with its best number of processes."""
    best: dict[str, float] = {}
    for row in rows:
        name = row["system"].split(",")[0]
        best[name] = max(best.get(name, 0.0), row["texts_per_s"])
    others = [name for name in ("plain procedure", "vLLM") if name in best]
    return {other: round(best["engine"] / best[other], 3) for other in others}


def format_row(row: dict[str, Any]) -> str:
    """One system in one line."""
    comparison = row["compared_with_engine"]
    verdict = "the same" if comparison["same_kept"] else "NOT THE SAME"
    return (
        f"{row['system']:38} {row['texts']:4} texts {row['texts_per_s']:8.3f}/s "
        f"{row['texts_per_cpu_s']:8.3f}/cpu-s {row['candidates_per_s']:8.1f} candidates/s "
        f"{row['tokens_per_text']:8.0f} tokens/text = {row['tokens_per_lower_bound']:6.3f} x lower bound, "
        f"{100 * row['share_of_matrix_rate']:5.1f} % of the matrix rate, {row['peak_mib']:6.0f} MiB; "
        f"kept {comparison['kept'][1]}, {verdict}, losses within {comparison['max_loss_difference']:.0e}"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Compare the annotation engine with the plain procedure.")
    add = parser.add_argument
    add("--model", nargs="+", default=["demo"], help=f"demo, {', '.join(SHAPES)}, folders or hub names")
    add("--tool", nargs="+", choices=PACKAGED, default=["Calculator", "QA"])
    add("--texts", type=int, default=64)
    add("--plain-texts", type=int, default=4, help="how many of them the plain procedure annotates")
    add("--corpus", nargs="+", default=["demo/pages"])
    add("--prompts", type=Path, default=PROMPTS, help="folder of prompts; default: the demo's")
    add("--max-tokens", type=int, default=112, help="longest text; default: the demo recipe's")
    add("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--max-batch-tokens", "--batch-tokens", type=int, default=ModelConfig().max_batch_tokens)
    add("--threads", type=int, help="torch threads on the CPU")
    for name, kind in (("--k", int), ("--m", int), ("--tau-s", float)):
        add(name, type=kind, help="default: the paper's")
    add("--no-shortcuts", dest="shortcuts", action="store_false", help="skip the runs without a shortcut")
    add("--agreement", action="store_true", help="also score the float32 model's calls in bfloat16")
    add("--given-name", action="store_true", help="also sample with draws that are given the tool's name")
    add("--compile", action="store_true", help="also run the engine compiled, as model.compile does")
    add("--profile", action="store_true", help="also print the time by phase, kernels, and idle time")
    add("--against", choices=("vllm",), help="also run the job in vLLM, in --dtype")
    add("--vllm-python", help="the interpreter of an environment with vLLM")
    add("--processes", type=int, default=1, help="also run every system in so many processes at once")
    args = parser.parse_args(argv)
    if args.processes > 1 and args.device != "cpu":
        parser.error("--processes divides the cores, so it needs --device cpu")
    if (args.against is None) != (args.vllm_python is None):
        parser.error("--against vllm and --vllm-python go together")
    return args


def main() -> None:
    """Command line."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = [compare(name, tool, args) for name in args.model for tool in args.tool]
    file = results.write("annotate", vars(args) | {"torch_threads": torch.get_num_threads()}, runs)
    print(f"written: {file}")


if __name__ == "__main__":
    main()
