"""The requests of OpenAI's interface, with this project's own fields (docs/serving.md).

In: the JSON of a request and the server's configuration. Out: prompts and `DecodingParams`. A field that
would change the answer and is not supported is refused, as are unknown fields; ApiError names them.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.inference.params import DecodingParams
from pipeline.serving.errors import ApiError
from tools_service.base.settings import IsoDate, NotNegativeInt, PositiveInt, Seed

R = TypeVar("R", bound="DecodingRequest")

MAX_STOPS = 16
NonEmpty = Annotated[str, Field(min_length=1)]
OneAsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)

# Fields of OpenAI's that change nothing here, whatever they are.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Fields that are not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_INSTEAD = {
    "n": "send the request several times, with different seeds",
    "tools": "the server calls its own tools; name those it must not call in tools_off",
    "functions": "the server calls its own tools; name those it must not call in tools_off",
}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class StreamOptions(_Fields):
    """How a stream ends."""

    include_usage: bool | None = None
    """Send the usage in a chunk of its own before the end."""
    include_obfuscation: bool | None = None
    """Accepted, without effect."""


class DecodingRequest(_Fields):
    """The fields of both kinds of requests. None: as the server was started."""

    model: str | None = None
    """Name of the model, as /v1/models has it."""
    max_tokens: PositiveInt | None = None
    """Maximum new tokens, not counting calls and their results."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """0 is greedy, which is what the server does unless it was started otherwise."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    seed: Seed | None = None
    """Seed of sampling."""
    stop: Annotated[list[NonEmpty] | None, Field(max_length=MAX_STOPS), OneAsList] = None
    """The text ends before any of these strings."""
    stream: bool | None = None
    """Send the answer while it is written."""
    stream_options: StreamOptions | None = None
    k: NotNegativeInt | None = None
    """A call begins where <API> is among the k most likely tokens. 0: never."""
    disabled: bool | None = None
    """Make no calls."""
    tools_off: list[str] | None = None
    """Tools that must not be called."""
    max_calls: NotNegativeInt | None = None
    """Maximum calls per prompt."""
    max_failed_calls: PositiveInt | None = None
    """Begin no further call after this many failed ones."""
    chained_calls: bool | None = None
    """Let a call begin inside the input of another call."""
    date: IsoDate | None = None
    """Date for dated tools, YYYY-MM-DD."""

    def params(self, served: DecodingParams) -> DecodingParams:
        """Those of the server, with what this request changes. ApiError for an unknown tool."""
        if unknown := sorted(set(self.tools_off or ()) - served.tools.keys()):
            known = ", ".join(served.tools)
            message = f"tools_off: no tool {unknown[0]!r}; there are {known}"
            raise ApiError(400, message, param="tools_off", code="invalid_value")
        names = ("temperature", "top_p", "seed", "k", "disabled", "max_calls", "max_failed_calls")
        changes = {name: getattr(self, name) for name in (*names, "chained_calls")}
        changes["max_new_tokens"] = self.new_tokens
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.stop is not None:
            changes["stop"] = tuple(self.stop)
        return replace(served, tools_off=served.tools_off.union(self.tools_off or ()), **changes)

    @property
    def new_tokens(self) -> int | None:
        """The maximum of new tokens."""
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(DecodingRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str], Field(min_length=1), OneAsList]
    """A text to continue, or several."""


class TextPart(_Fields):
    """A part of a message."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class Message(_Fields):
    """A message of a chat."""

    role: NonEmpty
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, values: Any) -> Any:
        """Clients send answers back as messages, with fields that are null (`refusal`, `tool_calls`)."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if value is not None and value != []}

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(DecodingRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    """The newer name of max_tokens."""

    @property
    def new_tokens(self) -> int | None:
        """The maximum of new tokens."""
        return self.max_completion_tokens or self.max_tokens


def parse_request(request_class: type[R], body: bytes) -> R:
    """The request in `body`. ApiError names the first field that is wrong."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object, got {reprlib.repr(values)}")
    try:
        return request_class.model_validate(_supported(values, request_class.model_fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        place = ".".join(str(part) for part in first["loc"])
        message = f"{place}: {first['msg'].removeprefix('Value error, ')}"
        if first["type"] != "value_error":  # our own messages have the value
            message += f", got {reprlib.repr(first['input'])}"
        if first["type"] == "missing":
            message = f"{place}: this field is required"
        raise ApiError(400, message, param=param, code=first["type"]) from None


def _supported(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that count; ApiError for the others, unless they ask for nothing."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            kept[name] = value
        elif name in NEUTRAL:
            if value is not None and not any(_same(value, neutral) for neutral in NEUTRAL[name]):
                hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
                message = f"{name} = {reprlib.repr(value)} is not supported{hint}"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        elif name not in IGNORED:
            message = f"unknown field {reprlib.repr(name)}; there are {', '.join(known)}"
            param = name[:100].encode("utf-8", "replace").decode()  # JSON can have half of a surrogate pair
            raise ApiError(400, message, param=param, code="unknown_parameter")
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
