"""Compare the annotation engine with the plain procedure, and with its shortcuts switched off.

    python -m bench.annotate [--model demo gpt2-small] [--tool Calculator QA] [--texts 64] [--plain-texts 8]

All systems annotate the same texts with the same model, seeds and tools, without Ray. The plain
procedure (bench/plain.py) uses the engine's random numbers, so both must keep the same calls; this
is checked, and the largest difference between losses is printed. Reported for each system: texts/s,
candidates/s, tokens fed by phase relative to the lower bound, FLOP/s as a share of a matrix
product's in the same run (through MKL or oneDNN, whichever is faster), and the peak memory of the
whole process, libraries included. Out: a table, and runs/bench/annotate.json.

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

`--against vllm --vllm-python PYTHON` also runs the job in vLLM, `--against sglang --sglang-python
PYTHON` in SGLang, each in an environment of its own (bench/opponents/annotator.py). They draw other
random numbers, so their losses and kept calls in the table are those of the engine's calls, scored by
them. `--rounds N` runs each engine N times in turns and reports the medians. `--processes N` also
runs every system in N processes at once (bench/processes.py), as annotating actors share a machine
without a GPU. On a GPU an engine's memory is what the device lost to it, and ours what torch
allocated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import results
from bench.comparison import Scale, compare_calls, format_row, speedups, sum_costs, table
from bench.device_profile import idle_shares, phase_rows, phases, traced
from bench.engines import OPPONENTS
from bench.measuring import measured
from bench.processes import run_in_processes
from bench.random_models import SHAPES
from bench.side_by_side import SystemRuns, run_systems
from bench.systems import BATCH, SystemRun, run_engine, without_shortcuts
from bench.workload import PROMPTS, Workload, make_model
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import Text
from pipeline.engine.compiling import compile_layers
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.drawn_calls import SamplingRequest
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import ScoredText, score_calls
from pipeline.method.sampling import sample_calls
from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.client import LocalTools


class RecordingAnnotator(Annotator):
    """An annotator that remembers which calls were executed, by text id."""

    executed: dict[int, tuple[Text, Sequence[ExecutedCall]]]

    def _score(self, works: Any, done: Any) -> list[ScoredText]:
        self.executed = {work.text.text_id: (work.text, work.executed) for work in works}
        return super()._score(works, done)


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


def report_phases(workload: Workload, shape: ModelShape, rate: float, *, kernels: bool) -> dict[str, Any]:
    """Annotate once more and print what each phase takes; with `kernels`, profile a batch as well."""
    model = workload.model
    with phases(model.device) as seconds:
        run, _ = run_engine("by phase", workload.annotator(), model, workload.texts)
    rows = phase_rows(seconds, run.usage, shape, rate)
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
    """Run all systems on one model and tool, in `args.dtype`."""
    workload = Workload.create(name, tool, args)
    model, method, texts, settings = workload.model, workload.method, workload.texts, workload.settings
    print(f"\n{name}, {tool}, {model.model.dtype}, {settings}")
    alone = run_systems(workload, texts[: args.plain_texts], args)
    lower_bounds = [
        sum_costs({work.phase: work.lower_bound} for work in annotation.work)
        for annotation in alone.annotations
    ]
    scale = Scale(lower_bounds, ModelShape.of(model.model))
    engine, rate = alone.engine[0], max(alone.matrix_rates.values())
    rows = []

    def report(runs: Sequence[SystemRun], rate: float, scored: Any = None, **more: Any) -> None:
        scored = runs[0].calls if scored is None else scored
        comparison = compare_calls(engine.calls[: len(scored)], scored, settings.tau_f)
        rows.append(scale.row(runs, rate) | {"compared_with_engine": comparison} | more)
        print(format_row(rows[-1]), flush=True)

    def report_all(runs: SystemRuns) -> None:
        rate = max(runs.matrix_rates.values())
        rates = ", ".join(f"{library} {of / 1e12:.3f}" for library, of in runs.matrix_rates.items())
        print(f"matrix product: {rates} TFLOP/s")
        report(runs.engine, rate)
        if runs.plain:
            report([runs.plain], rate)
        for opponent in runs.opponents.values():
            report(opponent.runs, rate, opponent.scored, setup=opponent.setup)

    report_all(alone)
    by_phase: dict[str, Any] = {}
    if args.profile or model.device.type == "cuda":
        by_phase = report_phases(workload, scale.shape, rate, kernels=args.profile)
    matrix_rates = {"1": alone.matrix_rates}
    if args.processes > 1:
        together = run_in_processes(args.processes, name, tool, args)
        matrix_rates[str(args.processes)] = together.matrix_rates
        report_all(together)
    for run in without_shortcuts(model, workload.tools, method, texts) if args.shortcuts else ():
        report([run], rate)
    if args.compile and compile_layers(model.model):
        workload.annotator().annotate(texts[:BATCH])
        report([run_engine("norms and MLPs compiled", workload.annotator(), model, texts)[0]], rate)
    numbers = {"model": name, "tool": tool, "dtype": args.dtype, "method": settings.model_dump()}
    numbers |= {"matrix_flops_per_s": matrix_rates, "shape": scale.shape.model_dump(), "systems": rows}
    numbers |= {"engine_speedup": speedups(rows)} | by_phase
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
    add("--dtype", nargs="+", dest="dtypes", default=["float32"], choices=("float32", "bfloat16"))
    add("--max-batch-tokens", "--batch-tokens", type=int, default=ModelConfig().max_batch_tokens)
    add("--threads", type=int, help="torch threads on the CPU")
    for name, kind in (("--k", int), ("--m", int), ("--tau-s", float)):
        add(name, type=kind, help="default: the paper's")
    add("--no-shortcuts", dest="shortcuts", action="store_false", help="skip the runs without a shortcut")
    add("--agreement", action="store_true", help="also score the float32 model's calls in bfloat16")
    add("--given-name", action="store_true", help="also sample with draws that are given the tool's name")
    add("--compile", action="store_true", help="also run the engine compiled, as model.compile does")
    add("--profile", action="store_true", help="also print the time by phase, kernels, and idle time")
    add(
        "--against", nargs="+", choices=tuple(OPPONENTS), default=[], help="also run the job in these engines"
    )
    for key, opponent in OPPONENTS.items():
        add(f"--{key}-python", help=f"the interpreter of an environment with {opponent.name}")
    add("--rounds", type=int, default=1, help="runs of each engine, in turns; the median is reported")
    add("--processes", type=int, default=1, help="also run every system in so many processes at once")
    args = parser.parse_args(argv)
    if args.processes > 1 and args.device != "cpu":
        parser.error("--processes divides the cores, so it needs --device cpu")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    args.against = list(dict.fromkeys(args.against))
    args.pythons = {key: getattr(args, f"{key}_python") for key in OPPONENTS}
    for key, python in args.pythons.items():
        if (key in args.against) != (python is not None):
            parser.error(f"--against {key} and --{key}-python go together")
    args.dtype = args.dtypes[0]
    return args


def main() -> None:
    """Command line."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = [
        compare(name, tool, argparse.Namespace(**vars(args) | {"dtype": dtype}))
        for name in args.model
        for dtype in args.dtypes
        for tool in args.tool
    ]
    print(f"\n{table(runs)}")
    file = results.write("annotate", vars(args) | {"torch_threads": torch.get_num_threads()}, runs)
    print(f"written: {file}")


if __name__ == "__main__":
    main()
