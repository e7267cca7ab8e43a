"""What a language model, or somebody who means harm, may write into Calculator(…): each with what it gets.

Used by test_calculator.py, and by bench/tools.py, which reports the slowest.
"""

from __future__ import annotations

from tools_service.calculator import MAX_DEPTH, MAX_LENGTH

MEGABYTE = 1_000_000


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


REASONS: dict[str, list[str]] = {
    "not arithmetic": [
        # Names, attributes, calls, Python of any kind.
        *_lines("""
__import__('os').system('ls')
__import__("subprocess")
().__class__.__mro__
().__class__.__bases__[0].__subclasses__()
(1).__class__
1 .real
1.real
eval(1)
exec('1')
print(1)
open('/etc/passwd').read()
lambda: 0
(lambda: 0)()
1 if 1 else 2
[x for x in (1,)]
{1}
{}
[1]
1]
'1'
"1" * 1000000
`1`
f'{1}'
b'1'
x
a.b
a=1
(a:=1)
1;1
1:2
1, 2 if x
import os
global x
...a
None
True
not 1
1 and 1
1 or 1
1 in (1,)
1 is 1
sum((1, 2))
max(1, 2)
abs(-1)
pow(9, 999999)
int("9" * 9999)
factorial(100000)
range(10**9)
"""),
        # Other operators, notations and units.
        *_lines("""
1e999
1E999
1e-999
1e5
1E5
0x10
0b11
0o17
1_000 + 1
1j
inf
-inf
nan
NaN
Infinity
5 % 2
50%
5 ^ 2
5!
~1
1|1
1&1
1@1
1<<1000000000
1>>1
1 < 2
1 = 1
1 == 1
1 \\ 1
2²
√4
π
$5 + 1
€5
5 kg
3 apples
five + two
1 -> 2
-> 2
1] -> 2 [Calculator(1
[Calculator(1+1)]
Calculator(1+1)
# 1
1 # 2
<script>1</script>
' OR 1=1 --
; rm -rf /
$(ls)
../../etc/passwd
%s%s%s%n
${1+1}
"""),
        # Characters that look like arithmetic.
        *_lines("""
１２ + ３
１
٣ + ٤
३ + ४
3 × 4
8 ÷ 2
5 − 3
5 – 3
5 — 3
5 ＋ 3
（1）
1⁄2
1 ∕ 2
¼
Ⅳ
①
五
1\u00a0+ 1
1\u2009000
1\u200b+1
\u202e1+1
\ufeff1+1
1\u0301
1٫5
1٬000
1’000
"""),
        # Control characters and halves of characters.
        *("\x00", "1\x00+1", "1+1\x00", "1\n+1", "1\t+1", "1\r+1", "1\x0b+1", "1\x0c+1", "1\x85+1"),
        *("1\x1b[31m", "1\x7f", "1\u2028+1", "\ud800", "1\udfff", "\ud83d\ude00", "😀+1", "1+1\n", "\n1+1"),
    ],
    "number missing": _lines("""
9**9**9
9**9**9**9**9
2**3
2 ** -1
8//3
+1
1+
*
/
+
()
(+)
(-)
(*)
1 + + 1
1 -
-
--
---
(
((
/2
*2
1*/2
1/*2*/3
1-+1
)
)(
1+(
1+()
()()
(())
- - -
1--
1*(
1/(
(1+)
(1*)2
"""),
    "operator missing": _lines("""
1 2
2(3)
(1)(2)
(1 2)
1 2 3
3 (4 + 5)
.5 .5
(1)2
1 000
12 345.6
(1)-1(1)
"""),
    "unbalanced parentheses": ["1)", "(1", "((1)", "(1))", "(1+2", "1+2)", "((((((1", "1))))))"],
    "malformed number": [
        *("1,2", "1,23,456", "1234,567", "0,123", "12,3456", "1,234,", ",123", "1..2", "5.", "1.2.3", "."),
        *(
            "..",
            ",",
            ",,",
            "1,,000",
            "1.,2",
            "1,.2",
            "1,000,00",
            "1.000,5",
            "1.0.0.1",
            "127.0.0.1",
            "1.5,000",
        ),
        *("," * 256, "." * 256, "1," * 128, "1." * 128),
    ],
    "division by zero": [
        *("1/0", "0/0", "1/(2-2)", "1/0.000", "5/(0*1)", "1/-0", "1/(0/5)", "1/0/0", "-1/0", "1/(1/3*3-1)"),
        *("1/.0", "1/00", "1/(" * 30 + "0" + ")" * 30),
    ],
    "nested too deep": [
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "(" * 200,
        "-(" * 90 + "1" + ")" * 70,
        "1+(" * 60 + "1",
    ],
    "result too large": [
        *("9" * 31, "9" * MAX_LENGTH, "*".join(["999999999"] * 20), "1" + "0" * 30, "-1" + "0" * 30),
        *("9*" * 127 + "9", "1/." + "0" * 200 + "1", "(" + "9" * 120 + ")*(" + "9" * 120 + ")"),
    ],
    "expression too long": [
        *("(" * 10_000 + ")" * 10_000, "(" * 10_000, ")" * 10_000, "-" * 10_000, "1" + "+1" * 10_000),
        *(f"{character}" * MEGABYTE for character in "19 a(-.,/*\x00é😀"),
        *("1+" * (MEGABYTE // 2), "1/" * 1_000, "9*" * 1_000 + "9", "9**" * 1_000, " " * 257, "1" * 257),
        *("," * 100_000, "." * 100_000, "[Calculator(" * 10_000, "1\x00" * 10_000),
    ],
    "empty expression": ["", " ", "   ", " " * MAX_LENGTH],
}

# Odd, and arithmetic all the same.
VALUES: dict[str, str] = {
    "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH: "1",
    "-" * (MAX_LENGTH - 1) + "1": "-1",
    "-" * (MAX_LENGTH - 2) + "1": "1",
    "9" * 30: "9" * 30,
    "0" * MAX_LENGTH: "0",
    "-" + "0" * 100: "0",
    "1/" * 127 + "1": "1",
    "1-" * 127 + "1": "-126",
    "1/3+" * 63 + "0": "21",
    "." + "0" * 255: "0",
    "." + "0" * 254 + "1": "0.00",
    "1/" + "9" * 254: "0.00",
}
