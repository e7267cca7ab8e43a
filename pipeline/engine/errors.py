"""Errors of the engine: a model that cannot be used, and numbers that are not finite."""

from __future__ import annotations

from typing import Any

from tools_service.base.errors import ConfigurationError, ToolformerError

# Where a draw comes from: text id, tool, token position.
Origin = tuple[int, str, int]


class ModelError(ConfigurationError):
    """The model cannot be loaded, or the engine would run it wrongly."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """The type of an error and the first line of its message, for messages to users."""
    message = str(error).strip()
    line = message.splitlines()[0] if message else ""
    return (
        f"{type(error).__name__}: {line[:longest]}"
        if line
        else type(error).__name__
    )


class NonFiniteError(ToolformerError):
    """The model gave a probability or a loss that is not finite; it is never averaged in."""

    def __init__(
        self,
        what: str,
        text_id: int,
        tool: str,
        position: int,
    ) -> None:
        place = f"text {text_id}, {tool}, position {position}"
        super().__init__(f"{place}: {what} is not finite")
        self.what = what
        self.text_id = text_id
        self.tool = tool
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        # By default only the message would travel between processes.
        arguments = (self.what, self.text_id, self.tool, self.position)
        return type(self), arguments
