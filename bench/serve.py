"""The endpoint under many clients, and when a replica is killed.

    python -m bench.serve [--recipe demo] [--clients 50] [--replicas 2] [--requests 8]

It starts `toolformer serve` and decodes all prompts of the recipe's question files in this process first:
each client compares the text and the calls of its answers with that. Every second client streams. Three
rounds: all clients at once; the same while a replica is killed with SIGKILL; the same after its replacement.
Out: a table, and runs/bench/serve.json. Exit code 1 if an answer is lost, mixed or wrong, if a request that
met the kill ends without an error, or if SIGTERM leaves a process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

from bench import results
from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.recipes import RECIPES
from pipeline.engine.loading import load_language_model
from pipeline.inference.generator import Generator, available_tools
from pipeline.inference.params import DecodingParams
from tools_service.serving.local import start_local_tools

Answer = tuple[str, tuple[tuple[str, str], ...]]
"""The text, and the tool and the result of each call."""

END_S = 120.0
_ADDRESS = re.compile(r"(http://\S+)/v1")


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a copy of the model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if re.search(r"ray::ServeReplica:\S+-model-", _title(child))]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def served(options: Sequence[str], log: Path) -> Iterator[Server]:
    """A server on a free port, with its standard error in `log`; SIGTERM ends it after the block.

    RuntimeError if it does not start, ends with a code other than 0, or leaves a process behind.
    """
    command = [sys.executable, "-m", "pipeline", "serve", "--port", "0", *options]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        address = next((found for line in process.stdout if (found := _ADDRESS.search(line))), None)
        if address is None:
            raise RuntimeError(f"the server does not start: {log.read_text(encoding='utf-8')[-2_000:]}")
        yield Server(process, address[1])
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=END_S)
        _, left = psutil.wait_procs(children, timeout=30)
        if code or left:
            raise RuntimeError(f"SIGTERM: exit code {code}, left behind {left}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Round:
    """What the clients of one round got."""

    right: int = 0
    wrong: list[tuple[str, Answer]] = field(default_factory=list)
    refused: int = 0  # status 429
    errors: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)  # of right answers
    first_token_s: list[float] = field(default_factory=list)  # of right answers that were streamed
    tokens: int = 0
    wall_s: float = 0.0

    def summary(self) -> dict[str, float]:
        """The numbers of the round."""
        percentiles = (
            statistics.quantiles(self.latencies_s, n=100) if len(self.latencies_s) > 1 else [0.0] * 99
        )
        return {
            "requests": self.right + len(self.wrong) + self.refused + len(self.errors),
            "right": self.right,
            "wrong": len(self.wrong),
            "refused": self.refused,
            "errors": len(self.errors),
            "requests_per_s": round(self.right / self.wall_s, 1),
            "tokens_per_s": round(self.tokens / self.wall_s, 1),
            "p50_s": round(percentiles[49], 3),
            "p99_s": round(percentiles[98], 3),
            "first_token_p50_s": round(statistics.median(self.first_token_s or [0.0]), 3),
        }


async def ask_all(
    url: str,
    expected: Mapping[str, Answer],
    clients: int,
    requests: int,
    on_answer: Callable[[int], None] = lambda right: None,
    **options: Any,
) -> Round:
    """`clients` at once, each with `requests` one after the other; every second client streams."""
    prompts, outcome = sorted(expected), Round()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        [model] = (await client.models.list()).data
    options["model"] = model.id
    began = time.perf_counter()

    async def ask_in_turn(number: int) -> None:
        # A client of its own, with connections of its own.
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
        ) as client:
            for turn in range(requests):
                prompt = prompts[(number + turn * clients) % len(prompts)]
                start = time.perf_counter()
                try:
                    ask = _stream if number % 2 else _complete
                    answer, tokens, first_s = await ask(client, prompt, options)
                except openai.RateLimitError:
                    outcome.refused += 1
                    continue
                except openai.APIError as error:
                    outcome.errors.append(str(error))
                    continue
                if answer != expected[prompt]:
                    outcome.wrong.append((prompt, answer))
                    continue
                outcome.right += 1
                outcome.tokens += tokens
                outcome.latencies_s.append(time.perf_counter() - start)
                if first_s is not None:
                    outcome.first_token_s.append(first_s)
                on_answer(outcome.right)

    await asyncio.gather(*map(ask_in_turn, range(clients)))
    outcome.wall_s = time.perf_counter() - began
    return outcome


async def _complete(
    client: openai.AsyncOpenAI, prompt: str, options: Mapping[str, Any]
) -> tuple[Answer, int, float | None]:
    completion = await client.completions.create(prompt=prompt, **options)
    [choice] = completion.choices
    assert completion.usage is not None
    calls: list[dict[str, Any]] = choice.toolformer["calls"]  # type: ignore[attr-defined]
    return (choice.text, _made(calls)), completion.usage.completion_tokens, None


async def _stream(
    client: openai.AsyncOpenAI, prompt: str, options: Mapping[str, Any]
) -> tuple[Answer, int, float | None]:
    start = time.perf_counter()
    text, calls, tokens, first_s, finished = "", {}, 0, None, False
    stream = await client.completions.create(
        prompt=prompt, stream=True, stream_options={"include_usage": True}, **options
    )
    async for chunk in stream:
        first_s = first_s or time.perf_counter() - start
        for choice in chunk.choices:
            text += choice.text
            calls |= {call["id"]: call for call in choice.toolformer["calls"]}  # type: ignore[attr-defined]
            finished = finished or choice.finish_reason is not None
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    # A stream that ends without a reason would look complete to a client that does not look.
    return (text if finished else f"{text} (cut off)", _made(list(calls.values()))), tokens, first_s


def _made(calls: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((call["function"]["name"], call["result"]) for call in calls if call["result"] is not None)


def expected_answers(config: GenerateConfig, prompts: Sequence[str]) -> dict[str, Answer]:
    """The answer to each prompt, decoded in this process without the endpoint."""
    tools = available_tools(config)
    generator = Generator(load_language_model(config.model), start_local_tools(config.tools, tools))
    generations = generator.generate(prompts, DecodingParams.of(config, tools), [config.date] * len(prompts))
    return {
        prompt: (generation.text, tuple((call.tool, call.result) for call in generation.calls))
        for prompt, generation in zip(prompts, generations, strict=True)
    }


def kill_one(server: Server) -> None:
    """End a replica as a crash does."""
    server.replicas()[0].kill()


def wait_for_replicas(server: Server, count: int, timeout_s: float = 300.0) -> None:
    """Wait until /health counts so many running replicas."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        response = httpx2.get(f"{server.url}/health", trust_env=False, timeout=60)
        if response.json()["replicas"] == {"RUNNING": count}:
            return
        time.sleep(0.2)
    raise RuntimeError(f"no {count} replicas after {timeout_s:.0f} s")


def main() -> int:
    """Run the rounds; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="demo")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--requests", type=int, default=8, help="of each client, one after the other")
    parser.add_argument("--max-rows", type=int, default=32)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]()
    # One date for all, so that dated tools answer the same in both processes.
    config = recipe.generate.model_copy(update={"date": "2026-01-31"})
    files = list(map(Path, recipe.evaluate.benchmarks))
    prompts = sorted({json.loads(line)["prompt"] for path in files for line in path.open(encoding="utf-8")})
    print(f"decoding {len(prompts)} prompts in this process", flush=True)
    expected = expected_answers(config, prompts)
    options = ["--recipe", arguments.recipe, "--generation.date", "2026-01-31"]
    options += ["--replicas", str(arguments.replicas), "--max-rows", str(arguments.max_rows)]
    rounds: dict[str, Round] = {}
    results.FOLDER.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with served(options, results.FOLDER / "serve.log") as server:
        start_s = time.monotonic() - began
        load = (server.url, expected, arguments.clients, arguments.requests)
        rounds["all at once"] = asyncio.run(ask_all(*load))
        kill_at = arguments.clients
        killed: list[float] = []

        def kill(right: int) -> None:
            if right == kill_at:
                kill_one(server)
                killed.append(time.monotonic())

        rounds["replica killed"] = asyncio.run(ask_all(*load, on_answer=kill))
        wait_for_replicas(server, arguments.replicas)
        replaced_s = time.monotonic() - killed[0]  # or sooner, if the round took longer
        rounds["after that"] = asyncio.run(ask_all(*load))
        began = time.monotonic()
    measured: dict[str, Any] = {name: outcome.summary() for name, outcome in rounds.items()}
    measured |= {"start_s": round(start_s, 1), "replaced_within_s": round(replaced_s, 1)}
    measured["end_s"] = round(time.monotonic() - began, 1)
    measured["kill_errors"] = sorted(set(rounds["replica killed"].errors))
    for name, value in measured.items():
        print(f"{name:<16} {value}")
    print(results.write("serve", vars(arguments), measured))
    lost = [len(rounds[name].errors) + rounds[name].refused for name in ("all at once", "after that")]
    wrong = sum(len(outcome.wrong) for outcome in rounds.values())
    in_flight = len(rounds["replica killed"].errors) <= arguments.max_rows
    return int(bool(wrong or any(lost) or not in_flight))


if __name__ == "__main__":
    sys.exit(main())
