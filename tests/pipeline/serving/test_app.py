"""The HTTP interface with one engine in this process: OpenAI's client, streams, errors, who may ask."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from pipeline.inference.generation import EndEvent, Generation, TextEvent
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import StreamingEngine
from pipeline.serving.chat import _refuse as refuse_chats
from pipeline.serving.errors import ApiError, queue_full, replica_lost
from tests.pipeline.inference.test_decoder import Blocked
from tests.pipeline.scripted import ScriptedModel
from tests.pipeline.serving.endpoint import NAME, EngineDecode, ScriptedDecode, client, running

pytestmark = pytest.mark.unit

PROMPT = "The answer to 27 + 4 is"
PATHS = [
    PROMPT + "| so| it| is",
    PROMPT + "| so| it| is [QA(Why?) -> 31]| because.",
    PROMPT + "| so| it| is| [|QA|(|Why?|)| ->",
    "Hello| you| there",
]
END = EndEvent(Generation(" done", (), (), "eos", 1, prompt_tokens=2))
PARAMS = DecodingParams(k=3)


@pytest.fixture
def decode() -> Iterator[EngineDecode]:
    engine = StreamingEngine(ScriptedModel("words", PATHS), Blocked())
    yield EngineDecode(engine)
    engine.close()


def expected(prompt: str, params: DecodingParams = PARAMS) -> Generation:
    [generation] = Generator(ScriptedModel("words", PATHS), Blocked()).generate([prompt], params)
    return generation


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


def post(url: str, body: Any, path: str = "/v1/completions", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | headers
    return httpx2.post(url + path, content=content, headers=sent, timeout=60, trust_env=False)


def test_openais_client_completes_with_the_calls_made(decode: EngineDecode) -> None:
    with running(decode) as url:
        completion = client(url).completions.create(model=NAME, prompt=[PROMPT, "Hello"], max_tokens=20)
    generations = [expected(prompt) for prompt in (PROMPT, "Hello")]
    assert [choice.text for choice in completion.choices] == [one.text for one in generations]
    [call] = completion.choices[0].toolformer["calls"]  # type: ignore[attr-defined]
    assert (call["function"]["name"], call["result"]) == ("QA", "31")
    assert call["position"] == generations[0].calls[0].position
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == sum(one.prompt_tokens for one in generations)
    assert completion.usage.completion_tokens == sum(one.tokens for one in generations)


def test_openais_client_reads_a_stream(decode: EngineDecode) -> None:
    with running(decode) as url:
        chunks = list(
            client(url).completions.create(
                model=NAME, prompt=PROMPT, stream=True, stream_options={"include_usage": True}
            )
        )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected(PROMPT).text
    calls = [call for chunk in chunks[:-1] for call in chunk.choices[0].toolformer["calls"]]  # type: ignore[attr-defined]
    assert [call["result"] for call in calls] == [None, "31"], "the question, then the result"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == expected(PROMPT).tokens


def test_openais_client_chats_with_the_plain_template(decode: EngineDecode) -> None:
    with running(decode) as url:
        chat = client(url).chat.completions
        messages: list[Any] = [{"role": "user", "content": PROMPT}]
        answer = chat.create(model=NAME, messages=messages, extra_body={"k": 3, "date": "2026-05-01"})
        chunks = list(chat.create(model=NAME, messages=messages, stream=True))
        off = chat.create(model=NAME, messages=messages, extra_body={"disabled": True})
    assert answer.choices[0].message.content == expected(PROMPT).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected(PROMPT).text
    assert off.choices[0].toolformer["calls"] == []  # type: ignore[attr-defined]


def test_a_model_without_a_chat_template_names_the_option(decode: EngineDecode) -> None:
    with running(decode, render=refuse_chats) as url, pytest.raises(openai.BadRequestError) as error:
        client(url).chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a"}])
    assert "--chat-template plain" in str(error.value)
    assert error.value.code == "no_chat_template"


def test_the_models_are_listed(decode: EngineDecode) -> None:
    with running(decode) as url:
        [model] = client(url).models.list().data
        assert client(url).models.retrieve(NAME).id == model.id == NAME
        with pytest.raises(openai.NotFoundError, match="this server has"):
            client(url).completions.create(model="other", prompt="a")
        with pytest.raises(openai.NotFoundError):
            client(url).models.retrieve("other")


def test_the_servers_parameters_hold_where_a_request_says_nothing() -> None:
    decode = ScriptedDecode([TextEvent(" done"), END])
    with running(decode, DecodingParams(k=4, temperature=0.7)) as url:
        post(url, {"prompt": "a"})
        post(url, {"prompt": "a", "temperature": 0, "date": "2020-02-29"})
    (_, first, date), (_, second, other_date) = decode.requests
    assert (first.k, first.temperature, date) == (4, 0.7, "2026-01-31")
    assert (second.k, second.temperature, other_date) == (4, 0.0, "2020-02-29")


def test_a_prompt_that_cannot_be_continued_has_status_400_in_both_forms(decode: EngineDecode) -> None:
    with running(decode) as url:
        for stream in (False, True):
            for prompt in ("", "\ud800"):
                error = error_of(post(url, {"prompt": prompt, "stream": stream}))
                assert error["type"] == "invalid_request_error"
                assert (error["param"], error["code"]) == ("prompt", "invalid_prompt")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("problem", "status", "kind"),
    [(queue_full(), 429, "rate_limit_error"), (replica_lost(), 503, "server_error")],
)
def test_errors_before_the_first_event_have_a_status(
    problem: ApiError, status: int, kind: str, stream: bool
) -> None:
    with running(ScriptedDecode([], problem)) as url:
        response = post(url, {"prompt": "a", "stream": stream})
    assert response.status_code == status
    assert int(response.headers["retry-after"]) >= 1
    assert error_of(response)["type"] == kind


def test_a_stream_that_is_cut_off_ends_with_an_error_and_without_done() -> None:
    with running(ScriptedDecode([TextEvent(" do")], replica_lost())) as url:
        lines = post(url, {"prompt": "a", "stream": True}).text.split("\n\n")
        with pytest.raises(openai.APIError, match="replica"):
            list(client(url).completions.create(model=NAME, prompt="a", stream=True))
        assert post(url, {"prompt": "a"}).status_code == 503
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert "[DONE]" not in "".join(lines)


def test_a_stream_without_an_end_is_an_error() -> None:
    with running(ScriptedDecode([TextEvent(" do")])) as url:
        assert post(url, {"prompt": "a"}).status_code == 503


def test_an_error_of_the_server_itself_has_the_shape_too() -> None:
    with running(ScriptedDecode([], ZeroDivisionError("secret"))) as url:
        response = post(url, {"prompt": "a"})
    assert response.status_code == 500
    assert "secret" not in error_of(response)["message"]
    later = ScriptedDecode([TextEvent(" do")], ZeroDivisionError("secret"))
    with running(later) as url, pytest.raises(openai.APIError, match="the server failed"):
        list(client(url).completions.create(model=NAME, prompt="a", stream=True))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("GET", "/x", 404), ("POST", "/v1/x", 404), ("GET", "/../app.py", 404)],
)
def test_every_refusal_has_openais_shape(method: str, path: str, status: int) -> None:
    with running(ScriptedDecode([END])) as url:
        response = httpx2.request(method, url + path, timeout=60, trust_env=False)
    assert response.status_code in (status, 405)
    assert error_of(response)["message"]


def test_limits_of_a_request() -> None:
    with running(ScriptedDecode([END]), max_inputs=2, max_body_bytes=200) as url:
        assert error_of(post(url, {"prompt": ["a"] * 3}))["code"] == "too_many_prompts"
        assert post(url, {"prompt": "a" * 300}).status_code == 413
        assert error_of(post(url, b"x"))["type"] == "invalid_request_error"
        half_a_pair = post(url, {"prompt": "a", "\ud800": 1})
        assert (half_a_pair.status_code, error_of(half_a_pair)["code"]) == (400, "unknown_parameter")


def test_who_may_ask() -> None:
    with running(ScriptedDecode([TextEvent(" done"), END]), token="secret") as url:
        without = post(url, {"prompt": "a"})
        assert (without.status_code, error_of(without)["type"]) == (401, "authentication_error")
        assert httpx2.get(f"{url}/v1/models", trust_env=False).status_code == 401
        assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200
        assert "<form" in httpx2.get(f"{url}/", trust_env=False).text
        assert client(url, "secret").completions.create(model=NAME, prompt="a").choices[0].text == " done"
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            response = post(url, {"prompt": "a"}, Authorization="Bearer secret", **headers)
            assert (response.status_code, error_of(response)["type"]) == (403, "permission_error")
        rebound = httpx2.get(f"{url}/", headers={"Host": "evil.example"}, trust_env=False)
        assert rebound.status_code == 403


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_decoding(stream: bool) -> None:
    started, ended = threading.Event(), threading.Event()

    class Endless:
        async def __call__(self, *arguments: Any, **options: Any) -> Any:
            import asyncio

            try:
                while True:
                    yield [TextEvent(" more")]
                    started.set()
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

    with running(Endless()) as url:
        with httpx2.Client(trust_env=False, timeout=60) as http:
            body = {"prompt": "a", "stream": stream}
            if stream:
                with http.stream("POST", f"{url}/v1/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    http.post(f"{url}/v1/completions", json=body, timeout=0.5)
        assert started.wait(timeout=60)
        assert ended.wait(timeout=60)


def test_many_clients_get_their_own_answers(decode: EngineDecode) -> None:
    answers: dict[int, str] = {}

    def ask(number: int, url: str) -> None:
        prompt = (PROMPT, "Hello")[number % 2]
        if number % 4 < 2:
            answers[number] = client(url).completions.create(model=NAME, prompt=prompt).choices[0].text
        else:
            chunks = client(url).completions.create(model=NAME, prompt=prompt, stream=True)
            answers[number] = "".join(chunk.choices[0].text for chunk in chunks)

    with running(decode) as url:
        threads = [threading.Thread(target=ask, args=(number, url)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    texts = [expected(prompt).text for prompt in (PROMPT, "Hello")]
    assert answers == {number: texts[number % 2] for number in range(16)}
    deadline = time.monotonic() + 60
    while decode.engine.load.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
