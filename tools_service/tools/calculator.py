"""The calculator (paper section 3): + - * / and parentheses over decimals, parsed, never evaluated.

In: an expression such as ``658,893 * 2`` or ``(27 + 4) / -2.5``. Out: whole results as they are,
all others with exactly two decimals, as in the paper: 35, 0.29, 1.47, 3.70. Arithmetic is exact (a
numerator and a denominator). Only the final result is rounded: half away from zero, as people round
in texts; ``0.00``, never ``-0.00``. Operators associate to the left: 2-3-4 is -5, 8/4/2 is 1.

Anything else has no result: other operators, names, powers, exponents, percent and currency signs,
digits outside ASCII, other commas than between thousands (``1,2``), a product without ``*``.
Length, nesting and size of the result are limited in advance, so that no input can take long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools_service.contract.tool import ToolInput, ToolResult

MAX_LENGTH = 256
MAX_DEPTH = 32
MAX_DIGITS = 30

Ratio = tuple[int, int]  # numerator, denominator > 0; not reduced, MAX_LENGTH bounds both

_ALPHABET = re.compile(r"[0-9.,+\-*/() ]*")
# A run of digits, points and commas is one token, so that a malformed number is recognised.
_TOKEN = re.compile(r"[0-9.,]+|[+\-*/()]")
_NUMBER = re.compile(r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+")
_END = "end"


class Calculator:
    """`Calculator(expression)`: a list of expressions to a list of numbers or reasons."""

    name = "Calculator"

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Evaluate every expression. (The client drops duplicates.)"""
        return [_calculate(call.text) for call in inputs]


class NoResultError(ValueError):
    """An expression has no result; the message is the reason."""


def _calculate(expression: str) -> ToolResult:
    try:
        return ToolResult(result=render(evaluate(expression)))
    except NoResultError as error:
        return ToolResult(reason=str(error))


def evaluate(expression: str) -> Ratio:
    """Return the exact value of `expression`; NoResultError if it has none."""
    if len(expression) > MAX_LENGTH:
        raise NoResultError("expression too long")
    if not _ALPHABET.fullmatch(expression):
        raise NoResultError("not arithmetic")
    tokens = _TOKEN.findall(expression)
    if not tokens:
        raise NoResultError("empty expression")
    tokens.append(_END)
    tokens.reverse()  # the next token is the last of the list, for pop()
    value = _sum(tokens, 0)
    if tokens[-1] != _END:
        raise NoResultError("unbalanced parentheses" if tokens[-1] == ")" else "operator missing")
    return value


def _sum(tokens: list[str], depth: int) -> Ratio:
    numerator, denominator = _product(tokens, depth)
    while (operator := tokens[-1]) == "+" or operator == "-":
        tokens.pop()
        n, d = _product(tokens, depth)
        if operator == "-":
            n = -n
        numerator, denominator = numerator * d + n * denominator, denominator * d
    return numerator, denominator


def _product(tokens: list[str], depth: int) -> Ratio:
    numerator, denominator = _operand(tokens, depth)
    while (operator := tokens[-1]) == "*" or operator == "/":
        tokens.pop()
        n, d = _operand(tokens, depth)
        if operator == "/":
            if n == 0:
                raise NoResultError("division by zero")
            n, d = (d, n) if n > 0 else (-d, -n)
        numerator, denominator = numerator * n, denominator * d
    return numerator, denominator


def _operand(tokens: list[str], depth: int) -> Ratio:
    """Parse a number or a parenthesis, after any number of minus signs."""
    sign = 1
    while (token := tokens.pop()) == "-":
        sign = -sign
    if token == "(":
        if depth == MAX_DEPTH:
            raise NoResultError("nested too deep")
        numerator, denominator = _sum(tokens, depth + 1)
        closing = tokens.pop()
        if closing != ")":
            raise NoResultError("unbalanced parentheses" if closing == _END else "operator missing")
        return sign * numerator, denominator
    if token in "+*/)" or token == _END:
        raise NoResultError("number missing")
    if not _NUMBER.fullmatch(token):
        raise NoResultError("malformed number")
    whole, _, decimals = token.replace(",", "").partition(".")
    return sign * int(whole + decimals), 10 ** len(decimals)


def render(value: Ratio) -> str:
    """Return whole values without decimals, others with two, halves rounded away from zero."""
    numerator, denominator = value
    quotient, remainder = divmod(abs(numerator), denominator)
    if quotient >= 10**MAX_DIGITS:
        raise NoResultError("result too large")
    if not remainder:
        return str(quotient) if numerator >= 0 else f"-{quotient}"
    cents = (200 * abs(numerator) + denominator) // (2 * denominator)
    sign = "-" if numerator < 0 and cents else ""
    return f"{sign}{cents // 100}.{cents % 100:02d}"
