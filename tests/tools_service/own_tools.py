"""Tools as a user writes them."""

from __future__ import annotations

from collections.abc import Sequence

from tools_service.contract.settings import ToolSettings
from tools_service.contract.tool import ToolInput, ToolResult


def convert(quantity: str) -> str:
    """Convert kilometres to miles."""
    return f"{float(quantity.removesuffix(' km')) * 0.621371:.1f} miles"


def has_distance(text: str) -> bool:
    return " km" in text


class ConverterConfig(ToolSettings):
    digits: int = 1


class Converter:
    """A class with settings that answers lists."""

    name = "Units"
    Config = ConverterConfig

    def __init__(self, settings: ConverterConfig) -> None:
        self._digits = settings.digits

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult(f"{float(call.text) * 0.621371:.{self._digits}f}") for call in inputs]


class OneByOne:
    """A class that answers one call."""

    def __call__(self, quantity: str) -> str:
        return convert(quantity)


class NeedsMore(OneByOne):
    """A class whose constructor wants what nobody gives it."""

    def __init__(self, key: str) -> None:
        self.key = key


class Exits(OneByOne):
    """A class whose constructor ends the process."""

    def __init__(self) -> None:
        raise SystemExit("no key")
