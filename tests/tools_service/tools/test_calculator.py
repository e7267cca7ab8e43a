"""The calculator: the paper's examples, an independent oracle, and what hostile models write."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fixtures.hostile_expressions import REASONS, VALUES
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.calculator import MAX_LENGTH, Calculator, NoResultError, evaluate

pytestmark = pytest.mark.unit

HOSTILE = [*(one for reason in REASONS.values() for one in reason), *VALUES]


def calculate(expression: str) -> ToolResult:
    return Calculator()([ToolInput(expression)])[0]


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("27 + 4 * 2", "35"),
        ("400 / 1400", "0.29"),
        ("735 / 500", "1.47"),
        ("37 / 10", "3.70"),
        ("658,893 * 2", "1317786"),
        ("1,234,567.5 - 0.5", "1234567"),
        ("2-3-4", "-5"),
        ("8/4/2", "1"),
        ("10-2-3", "5"),
        ("100/10*10", "100"),
        ("4 * 30", "120"),
        ("2*(3+4)", "14"),
        ("-(3-5)*2", "4"),
        ("2 - -3", "5"),
        ("--2", "2"),
        ("2*-3", "-6"),
        ("7/-2", "-3.50"),
        (".5 + .25", "0.75"),
        ("0.1 + 0.2 - 0.3", "0"),
        ("007", "7"),
        ("1/3*3", "1"),
    ],
)
def test_arithmetic_as_in_the_paper(expression: str, result: str) -> None:
    assert calculate(expression) == ToolResult(result=result)


@pytest.mark.parametrize(
    ("expression", "result"),
    [("1/8", "0.13"), ("-1/8", "-0.13"), ("0.005", "0.01"), ("2.675", "2.68"), ("999/1000", "1.00")],
)
def test_halves_round_away_from_zero_and_exactly(expression: str, result: str) -> None:
    assert calculate(expression).result == result


@pytest.mark.parametrize("expression", ["1/1000", "-1/1000", "0 - 0.004"])
def test_what_rounds_to_zero_has_no_sign_and_keeps_its_decimals(expression: str) -> None:
    assert calculate(expression).result == "0.00"


@pytest.mark.parametrize("expression", ["0", "-0", "0 * -5", "0.00"])
def test_zero_itself_prints_bare(expression: str) -> None:
    assert calculate(expression).result == "0"


@pytest.mark.parametrize("reason", REASONS)
def test_a_hostile_expression_has_a_reason_instead_of_a_result(reason: str) -> None:
    for expression in REASONS[reason]:
        assert calculate(expression) == ToolResult(reason=reason), expression[:60]


def test_odd_expressions_within_the_limits_have_their_value() -> None:
    for expression, value in VALUES.items():
        assert calculate(expression) == ToolResult(result=value), expression[:60]


def test_the_hostile_set_is_large() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) >= 200


def test_work_is_bounded_whatever_is_asked() -> None:
    """Counted in function calls, Python's and C's: a few per character up to the limit, none beyond it."""
    for expression in HOSTILE:
        most = 20 if len(expression) > MAX_LENGTH else 40 + 12 * len(expression)
        assert operations(lambda: calculate(expression)) <= most, expression[:60]  # noqa: B023


def test_numbers_never_have_more_digits_than_the_expression_has_characters() -> None:
    """So no conversion meets Python's limit on digits (640 at the least), and no product takes long."""
    for expression in HOSTILE:
        with contextlib.suppress(NoResultError):
            numerator, denominator = evaluate(expression)
            assert max(abs(numerator), denominator) < 10 ** (len(expression) + 1)


def operations(work: Callable[[], object]) -> int:
    """How many functions `work` calls."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_a_list_is_answered_in_order_and_one_bad_input_costs_only_itself() -> None:
    results = Calculator()([ToolInput("1+1"), ToolInput("x"), ToolInput("2+2")])
    assert [one.result for one in results] == ["2", None, "4"]


NUMBERS = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**7).map(lambda n: f"{n:,}"),
    st.decimals(0, 10**4, places=3).map(lambda d: f"{d:f}"),
)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " + ", " - ", " * ", " / "]), inner).map(
            "".join
        ),
        inner.map(lambda e: f"({e})"),
        inner.map(lambda e: f"-{e}"),
    ),
    max_leaves=8,
)


def oracle(expression: str) -> str | None:
    """The same value by Python's own grammar over Fractions, rounded by Decimal."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(ast.get_source_segment(source, node) or "")
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        return left * right if isinstance(node.op, ast.Mult) else left / right

    # Python's grammar refuses leading zeros of integers only: 007.5 is fine.
    source = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", expression.replace(",", ""))
    try:
        exact = value(ast.parse(source, mode="eval").body)
    except ZeroDivisionError:
        return None
    if abs(exact) >= 10**30:
        return None
    if exact.denominator == 1:
        return str(exact.numerator)
    with localcontext(prec=400):
        rounded = (Decimal(exact.numerator) / exact.denominator).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{rounded:f}".replace("-0.00", "0.00")


@given(EXPRESSIONS)
def test_every_expression_has_the_value_of_exact_arithmetic(expression: str) -> None:
    if len(expression) <= MAX_LENGTH:
        assert calculate(expression).result == oracle(expression)


@given(st.text(alphabet="0123456789.,+-*/() ", max_size=40))
def test_any_arrangement_of_its_characters_has_a_result_or_a_reason(expression: str) -> None:
    answer = calculate(expression)
    assert (answer.result is None) != (answer.reason is None)


@given(st.text(max_size=60))
def test_any_text_has_a_result_or_a_reason(text: str) -> None:
    answer = calculate(text)
    assert (answer.result is None) != (answer.reason is None)
