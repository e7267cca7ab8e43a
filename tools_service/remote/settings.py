"""Settings of the tools that answer elsewhere. They are written to manifests, so no secret is among them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tools_service.base.settings import PositiveInt, Text
from tools_service.contract.settings import Seconds, ToolSettings
from tools_service.contract.tool import ToolUnavailableError


def _is_url(value: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise ValueError(f"must be a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL, http://… or https://…")
    if "@" in parts.netloc:
        raise ValueError("must hold no password; put it into an environment variable and name that")
    return value


Url = Annotated[Text, AfterValidator(_is_url)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable."""
Header = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
"""The name of an HTTP header."""


# Of the deadline of the callers: a late call must not cost the others of its list.
DEADLINE_SHARE = 0.9


class McpConfig(ToolSettings):
    """A tool of an MCP server."""

    command: tuple[Text, ...] = ()
    """Program and arguments of a server on this machine, which speaks on its standard streams."""
    url: Url | None = None
    """Address of a running server (Streamable HTTP). Either this or command."""
    tool: Text
    """The tool's name on the server."""
    env: tuple[Variable, ...] = ()
    """Environment variables that the server gets, by name, beside HOME, PATH and the like."""
    headers: dict[Header, Variable] = {}  # noqa: RUF012
    """Headers of each request to url: the environment variable that holds the whole value, by header."""
    allow_writes: bool = False
    """Use the tool even if the server does not declare it read-only."""
    sessions: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Sessions of each replica; with command, each has a server process of its own."""
    calls_per_session: PositiveInt = 32
    """Calls that a session has unanswered at a time; others wait."""
    start_s: Seconds = 60.0
    """Seconds for a server to start and to list its tools."""
    max_message_bytes: PositiveInt = 2**20
    """Longer messages of the server are dropped: the call has no result."""
    date_parameter: Text | None = None
    """The tool's parameter that gets the date of the call's text, for dated tools."""

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either command (a program and its arguments) or url")
        if self.env and not self.command:
            raise ValueError("env is for a server with command; with url, give headers")
        if self.headers and not self.url:
            raise ValueError("headers are for a server with url; with command, give env")
        return self


class HttpToolConfig(ToolSettings):
    """A tool behind a URL."""

    url: Url
    """Where lists of inputs are posted to."""
    token: Variable | None = None
    """Environment variable with the token that is sent as Authorization: Bearer TOKEN."""
    max_answer_bytes: PositiveInt = 2**24
    """Longer answers to a list are dropped: its calls have no result."""


def read_variables(names: Iterable[str]) -> dict[str, str]:
    """The values of environment variables, by name. ToolUnavailableError names a missing one."""
    values = {name: os.environ.get(name, "") for name in names}
    if missing := [name for name, value in values.items() if not value]:
        raise ToolUnavailableError(f"the environment variable {missing[0]} is not set; set it")
    return values
