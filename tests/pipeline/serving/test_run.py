"""`toolformer serve` on a real Ray: many clients, a replica that is killed, a full queue, the end."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest

from bench.serve import Answer, Server, ask_all, expected_answers, kill_one, served, wait_for_replicas
from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import GenerateConfig
from tests.pipeline.inference.trained import prompt, trained_model
from tests.pipeline.scripted import tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CLIENTS, MAX_ROWS, MAX_QUEUED = 50, 4, 60
OFF = ("QA", "WikiSearch", "MT", "Calendar")
PROMPTS = sorted({prompt(random.Random(seed)) for seed in range(90)})
# At this temperature nearly every prompt has an answer of its own, and a third of them calls the tool.
TEMPERATURE = 1.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    trained_model().model.save_pretrained(folder)
    tokenizer("words").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(model: str) -> dict[str, Answer]:
    config = GenerateConfig(
        model=ModelConfig(path=model, dtype="float32", device="cpu"),
        tools_off=OFF,
        max_new_tokens=40,
        temperature=TEMPERATURE,
    )
    answers = expected_answers(config, PROMPTS)
    assert sum(bool(calls) for _, calls in answers.values()) > len(PROMPTS) // 5, "hardly any calls"
    assert len(set(answers.values())) > 0.9 * len(PROMPTS), "answers that cannot be told apart"
    return answers


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--model", model, "--generation.model.dtype", "float32", "--generation.model.device", "cpu"]
    options += ["--gpus-per-replica", "0", "--replicas", "2", "--tools-off", *OFF]
    options += ["--max-rows", str(MAX_ROWS), "--max-queued", str(MAX_QUEUED)]
    options += ["--generation.max-new-tokens", "40", "--generation.temperature", str(TEMPERATURE)]
    with served(options, tmp_path_factory.mktemp("log") / "log") as running:
        yield running  # at the end: SIGTERM leaves no process


def test_many_clients_get_the_answers_of_the_generator(server: Server, expected: dict[str, Answer]) -> None:
    outcome = asyncio.run(ask_all(server.url, expected, CLIENTS, requests=2))
    assert (outcome.wrong, outcome.errors, outcome.refused) == ([], [], 0)
    assert outcome.right == 2 * CLIENTS


def test_a_killed_replica_costs_the_requests_in_flight_each_with_an_error(
    server: Server, expected: dict[str, Answer]
) -> None:
    before = {process.pid for process in server.replicas()}

    def kill(right: int) -> None:
        if right == CLIENTS // 4:
            kill_one(server)

    outcome = asyncio.run(ask_all(server.url, expected, CLIENTS, requests=2, on_answer=kill))
    assert (outcome.wrong, outcome.refused) == ([], 0)
    # Those that the replica was decoding; between two batches there is none.
    assert len(outcome.errors) <= MAX_ROWS
    assert len(before - {process.pid for process in server.replicas()}) == 1
    assert outcome.right + len(outcome.errors) == 2 * CLIENTS
    assert all("replica" in error for error in outcome.errors)
    wait_for_replicas(server, 2)
    again = asyncio.run(ask_all(server.url, expected, CLIENTS, requests=1))
    assert (again.right, again.errors) == (CLIENTS, [])


def test_prompts_beyond_the_queue_are_refused_with_429(server: Server, expected: dict[str, Answer]) -> None:
    outcome = asyncio.run(ask_all(server.url, expected, 3 * (2 * MAX_ROWS + MAX_QUEUED), requests=1))
    assert outcome.refused > 0
    assert (outcome.wrong, outcome.errors) == ([], [])
    assert outcome.right >= MAX_QUEUED


def test_a_client_that_goes_away_frees_its_place(server: Server, expected: dict[str, Answer]) -> None:
    async def leave(count: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            [model] = (await client.models.list()).data
            streams = [
                await client.completions.create(
                    model=model.id, prompt=PROMPTS[0], stream=True, extra_body={"disabled": True}
                )
                for _ in range(count)
            ]
            for stream in streams:
                await anext(aiter(stream))
                await stream.close()

    asyncio.run(leave(2 * MAX_ROWS))
    outcome = asyncio.run(ask_all(server.url, expected, 2 * MAX_ROWS, requests=1))
    assert (outcome.right, outcome.errors) == (2 * MAX_ROWS, [])


def test_a_port_in_use_is_refused_before_anything_starts(server: Server, model: str) -> None:
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pipeline", "serve", "--model", model, "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert f"--port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr
