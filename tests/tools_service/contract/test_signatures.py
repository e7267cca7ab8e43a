"""What functions say of themselves, and which functions cannot be tools."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import Field

from tools_service.base.errors import ConfigurationError
from tools_service.contract.parameters import Parameters
from tools_service.contract.signatures import FunctionError, FunctionSignature

pytestmark = pytest.mark.unit


class Unit(Enum):
    KM = "km"
    MI = "mi"


def google(amount: float, to: Unit, digits: int = 2) -> str:
    """Convert a length.

    The length is in miles: rounded
    at the end.

    Args:
        amount: How much,
            in miles.
        to (Unit): The unit of the result.
        digits: Digits after the point. Defaults to 2.

    Returns:
        The length.
    """
    return ""


def sphinx(amount: float, to: Unit, digits: int = 2) -> str:
    """Convert a length.

    The length is in miles: rounded at the end.

    :param amount: How much, in miles.
    :param Unit to: The unit of the result.
    :param digits: Digits after the point. Defaults to 2.
    :returns: The length.
    """
    return ""


def numpy_style(amount: float, to: Unit, digits: int = 2) -> str:
    """Convert a length.

    The length is in miles: rounded at the end.

    Parameters
    ----------
    amount : float
        How much, in miles.
    to : Unit
        The unit of the result.
    digits : int, optional
        Digits after the point. Defaults to 2.

    Returns
    -------
    str
        The length.
    """
    return ""


@pytest.mark.parametrize("function", [google, sphinx, numpy_style])
def test_docstrings_of_three_styles_say_the_same(function: Callable[..., str]) -> None:
    signature = FunctionSignature(function)
    assert signature.name == function.__name__
    assert signature.description == "Convert a length. The length is in miles: rounded at the end."
    assert signature.parameters["required"] == ["amount", "to"]
    properties = signature.parameters["properties"]
    assert properties["amount"] == {"type": "number", "description": "How much, in miles."}
    assert properties["digits"] == {
        "type": "integer",
        "description": "Digits after the point. Defaults to 2.",
        "default": 2,
    }
    resolved = Parameters(signature.parameters).properties["to"]
    assert resolved["enum"] == ["km", "mi"]
    assert resolved["description"] == "The unit of the result."


def test_types_become_schemas() -> None:
    def function(
        a: str,
        b: Annotated[int, Field(ge=1, description="Of its type.")],
        c: Literal["x", "y"],
        d: datetime.date,
        e: Optional[bool] = None,  # noqa: UP045
        f: list[float] = [],  # noqa: B006
    ) -> str:
        """Do it.

        Args:
            b: Of the docstring.
        """
        return ""

    properties = FunctionSignature(function).parameters["properties"]
    assert properties["a"] == {"type": "string"}
    assert properties["b"] == {"type": "integer", "minimum": 1, "description": "Of its type."}
    assert properties["c"] == {"type": "string", "enum": ["x", "y"]}
    assert properties["d"] == {"type": "string", "format": "date"}
    assert properties["e"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": None}
    assert properties["f"] == {"type": "array", "items": {"type": "number"}, "default": []}


@pytest.mark.parametrize("annotation", ["datetime.date | None", "Optional[datetime.date]"])
def test_a_date_that_may_be_missing_is_the_date_of_the_text(annotation: str) -> None:
    def function(text: str, date: Any = None) -> str:
        return ""

    function.__annotations__["date"] = annotation
    signature = FunctionSignature(function)
    assert signature.dated
    assert list(signature.parameters["properties"]) == ["text"]


def test_a_date_that_is_needed_is_a_parameter() -> None:
    def weekday(date: datetime.date) -> str:
        return ""

    signature = FunctionSignature(weekday)
    assert not signature.dated
    assert signature.parameters["required"] == ["date"]


class Shop:
    """Knows prices."""

    def price(self, item: str) -> float:
        """Look a price up."""
        return 1.0

    @staticmethod
    def tax(item: str) -> float:
        """Look a tax up."""
        return 1.0

    @classmethod
    def name(cls, item: str) -> str:
        """Look a name up."""
        return ""

    def __call__(self, item: str) -> float:
        return 1.0


@functools.lru_cache
def cached(item: str) -> str:
    """Look it up once."""
    return ""


def two(item: str, currency: str) -> str:
    """Look two things up."""
    return ""


def positional(item: str, /, size: int = 1) -> str:
    """Take the item by its place."""
    return ""


def undocumented(item: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "name", "description"),
    [
        (Shop().price, "price", "Look a price up."),
        (Shop.tax, "tax", "Look a tax up."),
        (Shop.name, "name", "Look a name up."),
        (Shop(), "Shop", "Knows prices."),
        (cached, "cached", "Look it up once."),
        (functools.partial(two, currency="EUR"), "two", "Look two things up."),
        (positional, "positional", "Take the item by its place."),
        (undocumented, "undocumented", ""),
    ],
)
def test_everything_that_is_called_like_a_function_works(
    function: Callable[..., Any], name: str, description: str
) -> None:
    signature = FunctionSignature(function)
    assert (signature.name, signature.description) == (name, description)
    assert signature.parameters["required"] == ["item"]


def untyped(item):  # type: ignore[no-untyped-def]
    return item


def half_typed(item: str, size=1) -> str:  # type: ignore[no-untyped-def]
    return item


async def asynchronous(item: str) -> str:
    return item


async def stream(item: str) -> AsyncIterator[str]:
    yield item


def generator(item: str) -> Iterator[str]:
    yield item


def starred(*items: str) -> str:
    return ""


def double_starred(**items: str) -> str:
    return ""


def unknown_type(item: Missing) -> str:  # type: ignore[name-defined]  # noqa: F821
    return ""


def raising_type(item: 1 / 0) -> str:  # type: ignore[valid-type]
    return ""


def custom(shop: Shop) -> str:
    return ""


def callback(function: Callable[[], str]) -> str:
    return ""


def wrong_type(item: 5) -> str:  # type: ignore[valid-type]
    return ""


class Sleeper:
    async def __call__(self, item: str) -> str:
        return item


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "untyped: its parameter item has no type; write for example item: str"),
        (half_typed, "half_typed: its parameter size has no type"),
        (lambda text: text, "<lambda>: its parameter text has no type"),
        (Shop.price, "price: its parameter self has no type"),
        (asynchronous, "asynchronous: is async; write a plain function"),
        (stream, "stream: is async"),
        (Sleeper(), "Sleeper: is async"),
        (functools.partial(asynchronous), "asynchronous: is async"),
        (generator, "generator: is a generator; return the result"),
        (starred, "starred: takes any arguments (*items: str); name each parameter"),
        (double_starred, "double_starred: takes any arguments (**items: str)"),
        (unknown_type, "unknown_type: its signature cannot be read: name 'Missing' is not defined"),
        (raising_type, "raising_type: its signature cannot be read: division by zero"),
        (custom, "custom: no text gives a value of the type tests"),
        (callback, "callback: no text gives a value of the type"),
        (wrong_type, "wrong_type: no text gives a value of the type 5 of its parameter item; use str, int"),
        (Shop, "Shop: is a class, not a function"),
        (str, "str: is a class, not a function"),
        ("text", "str: is a value, not a function"),
        (None, "NoneType: is a value, not a function"),
        (math.sqrt, "sqrt: its parameter x has no type"),
        (print, "print: takes any arguments (*args)"),
        (getattr, "getattr: its signature cannot be read"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_in_one_sentence(function: Any, message: str) -> None:
    with pytest.raises(FunctionError) as refused:
        FunctionSignature(function)
    assert message in str(refused.value)
    assert isinstance(refused.value, ConfigurationError)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "text", ["Args:", "Args:\n    x:\n", ":param", "Parameters\n---", "Do.\n\n:raises x y z: b"]
)
def test_odd_docstrings_do_no_harm(text: str) -> None:
    def function(x: str) -> str:
        return x

    function.__doc__ = text
    assert FunctionSignature(function).parameters["required"] == ["x"]
