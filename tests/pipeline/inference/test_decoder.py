"""Decoding in one batch, with rows that join, leave and wait, is decoding alone without a cache."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bench.fixtures.plain_decoding import decode_plainly
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.inference.decoder import Decoder
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from tests.pipeline.inference.trained import UnsteadyTools, prompt, trained_model
from tests.pipeline.scripted import ScriptedModel
from tools_service.contract.tool import TOOL_FAILED, ToolInput, ToolResult

pytestmark = pytest.mark.unit

PARAMS = DecodingParams(max_new_tokens=16)
SETTINGS = {
    "paper": {},
    "several calls": {"max_calls": 3, "max_failed_calls": 2},
    "chained": {"max_calls": 3, "max_failed_calls": 3, "chained_calls": True},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "seed": 4},
    "without calls": {"disabled": True},
}


def prompts(number: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [prompt(rng) for _ in range(number)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_that_rows_join_and_leave_gives_what_each_gives_alone_without_a_cache(name: str) -> None:
    model = trained_model()
    params = DecodingParams(max_new_tokens=16, **SETTINGS[name])  # type: ignore[arg-type]
    number = 200 if name == "paper" else 30
    texts = prompts(number)
    dates = [f"2023-{1 + day // 28:02}-{1 + day % 28:02}" for day in range(number)]  # they decide the answers
    tools = UnsteadyTools(waits=True)
    found = list(Generator(model, tools).generate(texts, params, dates, batch_size=24))
    steady = UnsteadyTools(waits=False)
    assert found == [
        decode_plainly(Generator(model, steady), steady, text, params, date)
        for text, date in zip(texts, dates, strict=True)
    ]
    if name == "paper":  # the tools did fail, wait and answer at length
        reasons = Counter(failed.reason for one in found for failed in one.failed)
        assert min(reasons["no_answer"], reasons["unsafe_result"]) > 10
        assert sum(len(call.result) > 40 for one in found for call in one.calls) > 10
    if name == "chained":
        assert any(len(one.calls) > 1 for one in found)


def test_a_seed_gives_a_prompt_the_same_text_whatever_is_decoded_beside_it() -> None:
    model, texts = trained_model(), prompts(12, seed=2)

    def texts_of(batch_size: int, seed: int) -> list[str]:
        params = DecodingParams(max_new_tokens=12, temperature=1.0, seed=seed)
        generations = Generator(model, UnsteadyTools(waits=True)).generate(texts, params, None, batch_size)
        return [generation.annotated for generation in generations]

    assert texts_of(1, 0) == texts_of(5, 0) == texts_of(64, 0)
    assert sum(one != other for one, other in zip(texts_of(64, 0), texts_of(64, 1), strict=True)) > 6


class Blocked:
    """A client whose Calculator answers only when `released` is set."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.asked = threading.Event()

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        raise NotImplementedError

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if tool == "Calculator":
            self.loop = asyncio.get_running_loop()
            self.asked.set()
            await self.released.wait()
        return [ToolResult("31") for _ in inputs]

    def release(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.released.set)


def _script(name: str, tool: str) -> tuple[str, list[str]]:
    """A prompt, and the paths on which it calls `tool` with it."""
    text = f"{name} + 4 is"
    called = f"{text}| [|{tool}|(|{name}|)| ->"
    return text, [called, f"{text} [{tool}({name}) -> 31]| so {name}."]


def test_a_tool_that_waits_holds_up_no_other_row() -> None:
    slow, slow_paths = zip(*(_script(name, "Calculator") for name in ["1", "2", "3"]), strict=True)
    fast, fast_paths = zip(*(_script(name, "QA") for name in ["4", "5", "6", "7", "8", "9"]), strict=True)
    paths = [path for some in (*slow_paths, *fast_paths) for path in some]
    tools = Blocked()
    model = ScriptedModel("bytes", paths)
    generator, decoder = Generator(model, tools), Decoder(model, tools, max_rows=3)
    requests = {text: generator.request(text, PARAMS) for text in (*slow, *fast)}
    for request in requests.values():
        decoder.inbox.put(request)
    # The three slow ones fill the batch first; the others still come to their ends.
    while any(requests[text].generation is None for text in fast):
        decoder.step()
    assert tools.asked.wait(10)
    assert decoder.waiting == 3
    tools.release()
    while any(request.generation is None for request in requests.values()):
        decoder.step()
    for text, request in requests.items():
        assert request.generation is not None
        assert request.generation.text == f" so {text[0]}."
    assert (decoder.running, decoder.waiting, decoder.pending) == (0, 0, 0)


def test_a_limit_beyond_the_context_lets_others_run_beside_it() -> None:
    texts, paths = zip(*(_script(name, "QA") for name in ["1", "2"]), strict=True)
    model = ScriptedModel("bytes", [path for some in paths for path in some], max_positions=100)
    model.max_batch_tokens = 200
    generator, decoder = Generator(model, Blocked()), Decoder(model, Blocked(), max_rows=2)
    for text in texts:
        decoder.inbox.put(generator.request(text, DecodingParams(max_new_tokens=10_000)))
    decoder.step()
    assert decoder.running == 2


def test_a_result_is_run_in_one_forward_and_nothing_is_run_twice() -> None:
    text, paths = _script("7", "QA")
    model, fed = ScriptedModel("bytes", paths), []
    forward = model.forward

    def recorded(input_ids: torch.Tensor, *inputs: Any, **options: Any) -> torch.Tensor:
        fed.append(input_ids.shape[1])
        return forward(input_ids, *inputs, **options)

    model.forward = recorded  # type: ignore[method-assign, assignment]
    [found] = Generator(model, Blocked()).generate([text], DecodingParams())
    prompt_tokens, call, result = len(" " + text), len(" [QA(7) ->"), len(" 31]")
    # The arrow's last token is run together with the result.
    assert fed == [prompt_tokens, *[1] * (call - 1), 1 + result, *[1] * len(found.text)]
    assert found.prompt_tokens == prompt_tokens
    assert found.sampled_tokens == call + len(found.text) + 1  # and the end of the text


def test_a_cancelled_request_ends_with_what_it_has_even_while_it_waits() -> None:
    (waits, waits_paths), (other, other_paths) = _script("1", "Calculator"), _script("2", "QA")
    tools = Blocked()
    model = ScriptedModel("bytes", [*waits_paths, *other_paths])
    generator, decoder = Generator(model, tools), Decoder(model, tools, max_rows=4)
    requests = [generator.request(text, PARAMS) for text in (waits, other)]
    for request in requests:
        decoder.inbox.put(request)
    while requests[1].generation is None or requests[0].pending is None:
        decoder.step()
    assert tools.asked.wait(10)
    requests[0].cancelled = True
    decoder.inbox.put(last := generator.request(other, PARAMS))
    decoder.step()
    cancelled = requests[0].generation
    assert cancelled is not None
    assert (cancelled.stop_reason, decoder.waiting) == ("cancelled", 0)
    while last.generation is None:
        decoder.step()
    tools.release()
    decoder.step()  # the answer that nobody waits for
    assert requests[0].generation == cancelled
    assert requests[0].calls == []


@pytest.mark.parametrize("answers", [RuntimeError("broken"), [], [ToolResult("1")] * 5])
def test_a_client_that_breaks_its_contract_fails_the_calls_alone(answers: Any) -> None:
    class Breaks(Blocked):
        async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
            if isinstance(answers, Exception):
                raise answers
            return list(answers)

    text, paths = _script("1", "QA")
    model = ScriptedModel("bytes", [*paths, f"{text}| so."])
    found = list(Generator(model, Breaks()).generate([text, "2 + 4 is"], PARAMS))
    assert [failed.reason for failed in found[0].failed] == [TOOL_FAILED]
    assert found[0].text == " so."
    assert not found[1].failed


class TestMemory:
    """A forward that runs out of memory."""

    @pytest.mark.parametrize("most", [1, 2, 5])
    def test_fewer_rows_are_run_and_the_texts_are_the_same(
        self, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, texts = trained_model(), prompts(12, seed=3)
        expected = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        self.limit(monkeypatch, lambda rows, slots: rows > most)
        found = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        assert [one.annotated for one in found] == [one.annotated for one in expected]

    def test_a_prompt_that_does_not_fit_alone_is_refused_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, texts = trained_model(), prompts(6, seed=3)
        texts[2] = " and ".join(texts)
        expected = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        self.limit(monkeypatch, lambda rows, slots: slots > 60)
        found = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        assert found[2].refused is not None
        assert found[2].refused.reason == "out_of_memory"
        del found[2], expected[2]
        assert [one.text for one in found] == [one.text for one in expected]

    def test_a_prompt_that_fits_alone_waits_until_others_have_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, texts = trained_model(), prompts(6, seed=3)
        expected = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        join = DecodeBatch.join

        def limited(batch: DecodeBatch, saved: Any, tokens: Any) -> None:
            if len(batch) + len(saved) > 1:
                raise torch.OutOfMemoryError("too much")
            join(batch, saved, tokens)

        monkeypatch.setattr(DecodeBatch, "join", limited)
        found = list(Generator(model, UnsteadyTools(waits=False)).generate(texts, PARAMS))
        assert [one.refused for one in found] == [None] * 6
        assert [one.annotated for one in found] == [one.annotated for one in expected]

    @staticmethod
    def limit(monkeypatch: pytest.MonkeyPatch, exceeded: Any) -> None:
        forward = DecodeBatch._forward

        def limited(batch: DecodeBatch, first: int, tokens: Any, phase: Any) -> torch.Tensor:
            if exceeded(len(tokens), max(map(len, tokens))):
                raise torch.OutOfMemoryError("too much")
            return forward(batch, first, tokens, phase)

        monkeypatch.setattr(DecodeBatch, "_forward", limited)
