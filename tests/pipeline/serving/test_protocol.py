"""Which fields a request may have, and how those that it may not have are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.inference.params import DecodingParams
from pipeline.serving.errors import ApiError
from pipeline.serving.protocol import ChatRequest, CompletionRequest, parse_request

pytestmark = pytest.mark.unit


def completion(**fields: Any) -> CompletionRequest:
    return parse_request(CompletionRequest, json.dumps({"prompt": "So"} | fields).encode())


def refused(body: bytes | dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse_request(CompletionRequest, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert error.value.status == 400
    return error.value


def test_a_field_that_is_left_out_or_null_is_as_the_server_was_started() -> None:
    served = DecodingParams(k=3, temperature=0.5, stop=("x",), max_new_tokens=7, tools_off=frozenset({"MT"}))
    assert completion().params(served) == served
    assert completion(temperature=None, stop=None, k=None, max_tokens=None).params(served) == served


def test_fields_of_both_interfaces_become_parameters() -> None:
    served = DecodingParams(tools_off=frozenset({"MT"}))
    request = completion(
        max_tokens=5, temperature=1, top_p=0.5, seed=3, stop="x", k=2, tools_off=["QA"], max_calls=0
    )
    changed = request.params(served)
    assert (changed.max_new_tokens, changed.temperature, changed.top_p, changed.seed) == (5, 1.0, 0.5, 3)
    assert (changed.stop, changed.k, changed.max_calls) == (("x",), 2, 0)
    assert changed.tools_off == {"QA", "MT"}, "a request switches off, and never on"


def test_zero_and_false_are_values() -> None:
    changed = completion(temperature=0, k=0, disabled=False).params(
        DecodingParams(temperature=1.0, disabled=True)
    )
    assert (changed.temperature, changed.k, changed.disabled) == (0.0, 0, False)


def test_the_newer_name_of_max_tokens_wins() -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
        "max_completion_tokens": 9,
    }
    assert parse_request(ChatRequest, json.dumps(body).encode()).new_tokens == 9


def test_an_answer_can_be_sent_back_as_a_message() -> None:
    answer = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "annotations": []}
    body = {"messages": [{"role": "user", "content": "a"}, answer]}
    assert parse_request(ChatRequest, json.dumps(body).encode()).messages[1].text == "b"
    answer["tool_calls"] = [{"id": "1"}]
    with pytest.raises(ApiError, match="tool_calls"):
        parse_request(ChatRequest, json.dumps(body).encode())


def test_a_message_may_have_parts_of_text_and_no_others() -> None:
    def message(*parts: dict[str, Any]) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": list(parts)}]}).encode()

    text = parse_request(ChatRequest, message({"type": "text", "text": "a"}, {"type": "text", "text": "b"}))
    assert text.messages[0].text == "ab"
    with pytest.raises(ApiError):
        parse_request(ChatRequest, message({"type": "image_url", "image_url": {"url": "x"}}))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "echo": False, "logprobs": None, "suffix": None, "best_of": 1},
        {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}},
        {"user": "me", "metadata": {"a": "b"}, "store": True},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert completion(**fields) == completion()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("echo", True),
        ("logprobs", 0),
        ("best_of", 2),
        ("presence_penalty", 0.5),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("n", True),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(name: str, value: Any) -> None:
    error = refused({"prompt": "So", name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert name in str(error)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    error = refused({"prompt": "So", "tools_of": ["QA"]})
    assert (error.param, error.code) == ("tools_of", "unknown_parameter")
    assert "tools_off" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_tokens", 2.5),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", 1e9),
        ("top_p", 0),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("k", -1),
        ("date", "31.1.2026"),
        ("prompt", []),
        ("prompt", [1, 2]),
        ("stream", "yes"),
        ("stream_options", {"include": True}),
    ],
)
def test_a_value_out_of_range_names_its_field(name: str, value: Any) -> None:
    error = refused({"prompt": "So", name: value})
    assert error.param == name
    assert str(error).startswith(name)
    assert "\n" not in str(error)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"a"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert "JSON" in str(refused(body))


def test_a_tool_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ApiError, match=r"no tool 'Qa'; there are .*QA") as error:
        completion(tools_off=["Qa"]).params(DecodingParams())
    assert error.value.param == "tools_off"
