"""The calculator: the paper's examples, an independent oracle, and what hostile models write."""

from __future__ import annotations

import ast
import re
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_service.calculator import MAX_DEPTH, MAX_LENGTH, Calculator
from tools_service.contract import ToolInput, ToolResult

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize(
    "number",
    ["1,2", "1,23,456", "1234,567", "0,123", "12,3456", "1,234,", ",123", "1..2", "5.", "1.2.3", "."],
)
def test_a_malformed_number_has_no_result(number: str) -> None:
    assert calculate(f"{number} + 1") == ToolResult(reason="malformed number")


HOSTILE = {
    "not arithmetic": [
        *("1e999", "0x10", "1_000 + 1", "x", "a.b", "__import__('os')", "().__class__.__mro__", "print(1)"),
        *(
            "1 if 1 else 2",
            "lambda: 0",
            "5 % 2",
            "5 ^ 2",
            "5!",
            "2²",
            "√4",
            "π",
            "$5 + 1",
            "50%",
            "1 = 1",
            "1 < 2",
        ),
        *(
            "１２ + ３",
            "٣ + ٤",
            "3 × 4",
            "8 ÷ 2",
            "5 − 3",
            "1\x00+1",
            "\x00",
            "1\n+1",
            "1\t+1",
            "1;1",
            "[1]",
            "1]",
        ),
        *(
            "inf",
            "nan",
            "-inf",
            "1j",
            "1e5",
            "1 -> 2",
            "\ud800",
            "\u202e1+1",
            "¼",
            "Ⅳ",
            "１",
            "{1}",
            "'1'",
            "`1`",
        ),
        *(
            "1 and 1",
            "not 1",
            "~1",
            "1|1",
            "1&1",
            "1@1",
            "a=1",
            "1:2",
            "1\\1",
            "#",
            "1 # 2",
            "eval(1)",
            "\u00a01",
        ),
    ],
    "number missing": [
        *(
            "9**9**9",
            "2**3",
            "8//3",
            "+1",
            "1+",
            "*",
            "()",
            "(+)",
            "1 + + 1",
            "1 -",
            "-",
            "--",
            "(",
            "((",
            "/2",
            "1*/2",
        ),
        *("(-)", ")", ")(", "1+(", "1+()", "()()", "(())", "- - -", "1--"),
    ],
    "operator missing": ["1 2", "2(3)", "(1)(2)", "(1 2)", "1 2 3", "3 (4 + 5)", ".5 .5", "(1)2"],
    "unbalanced parentheses": ["1)", "(1", "((1)", "(1))", "(1+2", "1+2)"],
    "division by zero": ["1/0", "0/0", "1/(2-2)", "1/0.000", "5/(0*1)", "1/-0", "1/(0/5)"],
    "nested too deep": ["(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "(" * 200],
    "result too large": ["9" * 31, "9" * 200, "*".join(["999999999"] * 20), "1" + "0" * 30, "-1" + "0" * 30],
    "expression too long": [
        *(
            "(" * 10_000 + ")" * 10_000,
            "(" * 10_000,
            "-" * 10_000,
            "1" * 1_000_000,
            "1+" * 500_000,
            "a" * 1_000_000,
        ),
        *(
            "\x00" * 1_000_000,
            " " * 1_000_000,
            "1/" * 1_000,
            "9*" * 1_000 + "9",
            "," * 100_000,
            "." * 100_000,
        ),
    ],
    "empty expression": ["", " ", "   "],
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_expression_has_a_reason_instead_of_a_result(reason: str) -> None:
    for expression in HOSTILE[reason]:
        assert calculate(expression) == ToolResult(reason=reason), expression[:60]


def test_the_limits_themselves_are_allowed() -> None:
    assert calculate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).result == "1"
    assert calculate("-" * (MAX_LENGTH - 1) + "1").result == "-1"
    assert calculate("9" * 30).result == "9" * 30


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
