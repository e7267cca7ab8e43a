"""Decoding with tools on the demo's questions: exactness, speed of a batch, a slow tool, options.

    python -m bench.decode [--model runs/demo/model] [--parts exact batch wait options]

- exact: 200 prompts, with tools of which some fail, some wait and some answer at length. Decoded in a
  batch that prompts join and leave, and one at a time without a cache: the texts must be the same.
- batch: all questions, one at a time and 64 together: CPU-seconds, tools included, and their ratio.
- wait: half of the prompts call a tool that waits for 500 ms. The time until the other half is done,
  as a multiple of that with a tool that does not wait (median of five, one after the other).
- options: the accuracy with several calls, with asking again after a failed call, and with chained calls.

Exit code 1 if texts differ, if the batch is less than 6 times as fast, or if waiting costs the others
10 % or more. Two minutes on two cores; torch runs on one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.fixtures.plain_decoding import decode_plainly
from bench.measuring import measured
from bench.results import write
from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.recipes import demo
from pipeline.engine.loading import load_language_model
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.questions import Benchmark, Question, read_benchmark
from pipeline.evaluation.scoring import is_right
from pipeline.inference.decoder import Decoder
from pipeline.inference.generation import Generation
from pipeline.inference.generator import Generator, available_tools
from pipeline.inference.params import DecodingParams
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import LocalTools, ToolClient

PARTS = ("exact", "batch", "wait", "options")
ROWS = 64
EXACT_PROMPTS = 200
WAIT_S = 0.5
LEAST_RATIO, MOST_SLOWER = 6.0, 1.10
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "two calls": {"max_calls": 2},
    "asking again": {"max_failed_calls": 3},
    "chained": {"max_calls": 3, "max_failed_calls": 3, "chained_calls": True},
}


@dataclass(frozen=True, slots=True)
class Demo:
    """The model, the configuration of its tools, and the questions."""

    model: LanguageModel
    config: GenerateConfig
    benchmarks: Sequence[Benchmark]

    def tools(self) -> LocalTools:
        """The tools, with nothing in their cache."""
        return start_local_tools(self.config.tools, available_tools(self.config))

    def params(self, benchmark: Benchmark) -> DecodingParams:
        """As `evaluate` decodes the benchmark."""
        tools_on = set(self.config.tools.specs) - benchmark.tools_off
        return replace(DecodingParams.of(self.config, tools_on), stop_at_newline=True)

    def questions(self) -> Iterator[tuple[Benchmark, Question]]:
        """Questions of all benchmarks in turns."""
        for questions in zip(*(benchmark.questions for benchmark in self.benchmarks), strict=False):
            yield from zip(self.benchmarks, questions, strict=True)


class SlowTools:
    """Tools of which some wait, before they are asked; with `unsteady`, some fail or answer at length."""

    def __init__(
        self, tools: ToolClient, slow: Sequence[str], wait_s: float, *, unsteady: bool = False
    ) -> None:
        self._tools, self._slow, self._wait_s, self._unsteady = tools, slow, wait_s, unsteady

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [self._changed(*pair) for pair in zip(inputs, self._tools.call(tool, inputs), strict=True)]

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if tool in self._slow:
            await asyncio.sleep(self._wait_s)
        answers = await self._tools.acall(tool, inputs)
        return [self._changed(*pair) for pair in zip(inputs, answers, strict=True)]

    def _changed(self, call: ToolInput, answer: ToolResult) -> ToolResult:
        rng = random.Random(f"{call}")
        if not self._unsteady or rng.random() < 0.6:
            return answer
        long = " ".join(str(rng.randint(10, 99)) for _ in range(40))
        return ToolResult(long) if rng.random() < 0.5 else ToolResult(reason="no_answer")


def exact(world: Demo) -> dict[str, Any]:
    """Whether a batch says what each prompt says alone, without a cache."""
    tools = world.tools()
    slow = SlowTools(tools, list(world.config.tools.specs)[::2], 0.05, unsteady=True)
    generator = Generator(world.model, slow)
    questions = list(world.questions())[:EXACT_PROMPTS]
    decoder = Decoder(world.model, slow, ROWS)
    requests = [generator.request(q.prompt, world.params(b), q.date) for b, q in questions]
    for request in requests:
        decoder.inbox.put(request)
    while any(request.generation is None for request in requests):
        decoder.step()
    alone = [decode_plainly(generator, slow, q.prompt, world.params(b), q.date) for b, q in questions]
    found = [request.generation for request in requests]
    calls = [call for generation in alone for call in generation.calls]
    return {
        "prompts": len(questions),
        "different": sum(one != other for one, other in zip(found, alone, strict=True)),
        "calls": len(calls),
        "long results": sum(len(call.result) > 100 for call in calls),
        "failed calls": sum(len(generation.failed) for generation in alone),
    }


def batch(world: Demo) -> dict[str, Any]:
    """CPU-seconds of all questions, one at a time and together."""
    cpu_s = {}
    for rows in (1, ROWS):
        generator = Generator(world.model, world.tools())
        with measured(world.model.device) as timing:
            for benchmark in world.benchmarks:
                list(_answers(generator, benchmark, world.params(benchmark), rows))
        cpu_s[rows] = timing["cpu_s"]
    questions = sum(len(benchmark.questions) for benchmark in world.benchmarks)
    return {
        "questions": questions,
        "one at a time, questions per CPU-second": questions / cpu_s[1],
        f"{ROWS} together, questions per CPU-second": questions / cpu_s[ROWS],
        "ratio": cpu_s[1] / cpu_s[ROWS],
    }


def wait(world: Demo) -> dict[str, Any]:
    """How much longer questions take beside others whose tool waits."""
    fast, slow = (
        next(b for b in world.benchmarks if b.name == name) for name in ("calculator", "wikisearch")
    )
    seconds: dict[float, list[float]] = {0.0: [], WAIT_S: []}
    for _ in range(5):
        for wait_s, times in seconds.items():
            tools = SlowTools(world.tools(), list(set(world.config.tools.specs) - {"Calculator"}), wait_s)
            generator, decoder = Generator(world.model, tools), Decoder(world.model, tools, ROWS)
            requests = {
                benchmark.name: [
                    generator.request(q.prompt, world.params(benchmark), q.date) for q in benchmark.questions
                ]
                for benchmark in (fast, slow)
            }
            for pair in zip(requests[slow.name], requests[fast.name], strict=True):
                for request in pair:
                    decoder.inbox.put(request)
            began = time.perf_counter()
            while any(request.generation is None for request in requests[fast.name]):
                decoder.step()
            times.append(time.perf_counter() - began)
            while any(request.generation is None for request in requests[slow.name]):
                decoder.step()
    quick, beside = statistics.median(seconds[0.0]), statistics.median(seconds[WAIT_S])
    return {
        "seconds without waiting": quick,
        "seconds beside a waiting tool": beside,
        "multiple": beside / quick,
    }


def options(world: Demo) -> dict[str, Any]:
    """Percent right, calls, failed calls and sampled tokens for each option."""
    results = {}
    tools = world.tools()
    for name, settings in OPTIONS.items():
        rows = {}
        for benchmark in world.benchmarks:
            params = replace(world.params(benchmark), **settings)
            answers = list(_answers(Generator(world.model, tools), benchmark, params, ROWS))
            right = [
                is_right(q.scoring, g.text, q.answers)
                for q, g in zip(benchmark.questions, answers, strict=True)
            ]
            rows[benchmark.name] = {
                "percent right": 100 * sum(right) / len(right),
                "calls": sum(len(generation.calls) for generation in answers),
                "failed calls": sum(len(generation.failed) for generation in answers),
                "sampled tokens": sum(generation.sampled_tokens for generation in answers),
            }
        results[name] = rows
    return results


def _answers(
    generator: Generator, benchmark: Benchmark, params: DecodingParams, rows: int
) -> Iterator[Generation]:
    prompts = [question.prompt for question in benchmark.questions]
    dates = [question.date for question in benchmark.questions]
    return generator.generate(prompts, params, dates, rows)


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = demo()
    generation = recipe.evaluate.generation
    model_config = generation.model.model_copy(update={"path": arguments.model})
    config = generation.model_copy(update={"model": model_config})
    benchmarks = [read_benchmark(Path(path)) for path in recipe.evaluate.benchmarks]
    world = Demo(load_language_model(model_config), config, benchmarks)
    results = {
        part: {"exact": exact, "batch": batch, "wait": wait, "options": options}[part](world)
        for part in arguments.parts
    }
    for part, result in results.items():
        print(f"{part}:")
        for name, value in result.items():
            print(f"  {name}: {value if isinstance(value, int | dict) else f'{value:.2f}'}")
    write("decode", {"model": arguments.model, "rows": ROWS, "wait_s": WAIT_S}, results)
    failed = [
        "exact" in results and results["exact"]["different"] > 0,
        "batch" in results and results["batch"]["ratio"] < LEAST_RATIO,
        "wait" in results and results["wait"]["multiple"] >= MOST_SLOWER,
    ]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
