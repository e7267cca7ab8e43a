"""Arithmetic stories: amounts stated in a sentence or two, and the number that follows from them.

A story has an `opening`, which states the amounts, and a `closing`, which ends with the result;
they are combined at random. Each kind of story has its own openings; the closings are shared by the
kinds they suit. In the web pages the result is correct. In the pages for pretraining it is a random
number (`correct=False`), so that the model sees the words of arithmetic but cannot learn to
calculate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random

from demo import lexicon


@dataclass(frozen=True)
class Story:
    """An opening, the counted unit, and the expression whose value the closing states."""

    opening: str
    subject: str
    unit: str
    expression: str
    value: str
    closings: tuple[str, ...]


# {s} is the subject, {u} the unit, {c} the place of the call, {v} the result.
GAINED = (
    "Now {s} has{c} {v} {u}.",
    "That makes{c} {v} {u}.",
    "That makes{c} {v} {u} in all.",
    "Altogether {s} has{c} {v} {u}.",
    "In total there are{c} {v} {u}.",
    "The new total is{c} {v} {u}.",
    "So {s} counts{c} {v} {u}.",
    "Together they come to{c} {v} {u}.",
    "The sum is{c} {v}.",
    "At the end of the day there were{c} {v} {u}.",
)
LOST = (
    "Now {s} has{c} {v} {u}.",
    "That leaves{c} {v} {u}.",
    "So {s} is left with{c} {v} {u}.",
    "Only{c} {v} {u} remained.",
    "The rest is{c} {v} {u}.",
    "After that there were{c} {v} {u}.",
    "In the end {s} kept{c} {v} {u}.",
)
MULTIPLIED = (
    "That makes{c} {v} {u}.",
    "In total there are{c} {v} {u}.",
    "All in all {s} has{c} {v} {u}.",
    "Together they come to{c} {v} {u}.",
    "So {s} counts{c} {v} {u}.",
    "The whole lot is{c} {v} {u}.",
)
DIVIDED = (
    "Each gets{c} {v} {u}.",
    "So each one has{c} {v} {u}.",
    "That is{c} {v} {u} for each.",
    "Every one of them holds{c} {v} {u}.",
    "A single share is{c} {v} {u}.",
)
PAID = (
    "The bill is{c} {v} coins.",
    "That costs{c} {v} coins.",
    "In total {s} pays{c} {v} coins.",
    "So the price is{c} {v} coins.",
    "The whole order comes to{c} {v} coins.",
)
ASKED = (
    "How many {u} is that? The answer is{c} {v}.",
    "The result is{c} {v}.",
    "How many now? It is{c} {v}.",
)


def subject(rng: Random) -> str:
    """A person or a shop."""
    if rng.random() < 0.75:
        return rng.choice(lexicon.FEMALE + lexicon.MALE)
    return "the " + rng.choice(lexicon.SHOPS)


def addition(rng: Random) -> Story:
    """a + b, sometimes a + b + c."""
    s, u, a, b = subject(rng), rng.choice(lexicon.THINGS), rng.randint(3, 99), rng.randint(3, 99)
    t = rng.choice(lexicon.FEMALE + lexicon.MALE)
    other = rng.choice(lexicon.THINGS)
    if rng.random() < 0.15:
        c = rng.randint(3, 60)
        opening = rng.choice(
            (
                f"{s} found {a} {u} on Monday, {b} on Tuesday and {c} on Friday.",
                f"{s} has {a} red, {b} blue and {c} green {u}.",
                f"First {s} sold {a} {u}, then {b} and then {c}.",
            )
        )
        return Story(opening, s, u, f"{a} + {b} + {c}", str(a + b + c), GAINED + ASKED)
    opening = rng.choice(
        (
            f"{s} had {a} {u} and bought {b} more.",
            f"{s} owned {a} {u}. Then {t} brought {b} more.",
            f"There were {a} {u} in the room and {s} added {b}.",
            f"{s} collected {a} {u} in spring and {b} in autumn.",
            f"{s} has {a} {u}, and {t} has {b} {u}.",
            f"{s} picked {a} {u} in the morning and {b} after lunch.",
            f"With {a} {u} on the left and {b} on the right, {s} was happy.",
            f"{s} started with {a} {u} and received another {b}.",
            f"On Monday {s} made {a} {u}, on Tuesday {b}.",
            f"{a} old {u} and {b} new ones belong to {s}.",
            f"{s} put {a} {u} beside {b} {other}.",
            f"{t} gave {b} {u} to {s}, who already had {a}.",
        )
    )
    if opening.endswith(f"{other}."):
        u = "things"
    first, second = (b, a) if opening.startswith(f"{t} gave") else (a, b)
    return Story(opening, s, u, f"{first} + {second}", str(a + b), GAINED + ASKED)


def subtraction(rng: Random) -> Story:
    """a - b with a > b."""
    s, u, b = subject(rng), rng.choice(lexicon.THINGS), rng.randint(3, 80)
    a = b + rng.randint(2, 95)
    t = rng.choice(lexicon.FEMALE + lexicon.MALE)
    opening = rng.choice(
        (
            f"{s} had {a} {u} and gave {b} to {t}.",
            f"{s} had {a} {u} but lost {b} on the way.",
            f"Of the {a} {u}, {s} sold {b}.",
            f"{s} owned {a} {u}. Then {t} took {b} of them.",
            f"There were {a} {u} on the table, and {s} removed {b}.",
            f"{s} baked {a} {u} and ate {b}.",
            f"From a pile of {a} {u} {s} threw away {b}.",
            f"{s} kept {a} {u} in a shed until {b} were stolen.",
            f"{s} began the week with {a} {u} and used {b}.",
        )
    )
    return Story(opening, s, u, f"{a} - {b}", str(a - b), LOST + ASKED)


def multiplication(rng: Random) -> Story:
    """a * b, with containers, rows, days or prices."""
    s, u, a, b = subject(rng), rng.choice(lexicon.THINGS), rng.randint(3, 60), rng.randint(3, 60)
    box = rng.choice(lexicon.CONTAINERS)
    if rng.random() < 0.35:
        opening = rng.choice(
            (
                f"{s} buys {a} {u} at {b} coins each.",
                f"{s} ordered {a} {u}. One costs {b} coins.",
                f"{a} {u} are sold by {s} for {b} coins apiece.",
                f"For each of {a} {u} {s} asks {b} coins.",
            )
        )
        return Story(opening, s, "coins", f"{a} * {b}", str(a * b), PAID)
    opening = rng.choice(
        (
            f"{s} has {a} {box} with {b} {u} in each.",
            f"{s} fills {a} {box}, and each holds {b} {u}.",
            f"There are {a} {box} of {b} {u} each.",
            f"{s} makes {a} {u} a day for {b} days.",
            f"In each of {a} {box} {s} put {b} {u}.",
            f"{a} {box} came, every one with {b} {u}, for {s}.",
            f"{s} loads {a} {u} into every cart, and there are {b} carts.",
        )
    )
    return Story(opening, s, u, f"{a} * {b}", str(a * b), MULTIPLIED + ASKED)


def division(rng: Random) -> Story:
    """a / b without a remainder."""
    s, u, b = subject(rng), rng.choice(lexicon.THINGS), rng.randint(2, 20)
    a = b * rng.randint(2, 60)
    group, box = rng.choice(lexicon.GROUPS), rng.choice(lexicon.CONTAINERS)
    opening = rng.choice(
        (
            f"{s} shares {a} {u} equally among {b} {group}.",
            f"{s} packs {a} {u} into {b} {box}.",
            f"{a} {u} are divided by {s} between {b} {group}.",
            f"{b} {group} split {a} {u} that {s} brought.",
            f"{s} spreads {a} {u} evenly over {b} {box}.",
        )
    )
    return Story(opening, s, u, f"{a} / {b}", str(a // b), DIVIDED)


KINDS: tuple[Callable[[Random], Story], ...] = (addition, subtraction, multiplication, division)


def story(rng: Random, correct: bool = True) -> Story:
    """A story of any kind. If not `correct`, its result is a random number of about as many digits."""
    drawn = KINDS[rng.choices(range(len(KINDS)), (4, 3, 3, 2))[0]](rng)
    drawn = replace(drawn, opening=capital(drawn.opening))
    if correct:
        return drawn
    digits = max(1, len(drawn.value) + rng.choice((-1, 0, 0, 0, 1)))
    return replace(drawn, value=str(rng.randint(10 ** (digits - 1), 10**digits - 1)))


def capital(sentence: str) -> str:
    """The sentence with an upper-case first letter."""
    return sentence[:1].upper() + sentence[1:]


def canonical(expression: str) -> tuple[str, ...]:
    """The operator and the operands. The operands are sorted if their order does not matter."""
    operands, operator = expression.split()[::2], expression.split()[1]
    return (operator, *(sorted(operands) if operator in "+*" else operands))


def evaluate(expression: str) -> Fraction:
    """The value of ``a op b [op c]``, evaluated from left to right."""
    words = expression.split()
    value = Fraction(words[0])
    for operator, operand in zip(words[1::2], words[2::2], strict=True):
        number = Fraction(operand)
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[operator]
    return value


# Held-out wordings: only questions use them, never pages.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "+": (
        "How many does {s} have in the end? The answer is",
        "The total number of {u} is",
        "Counted together it is",
    ),
    "-": ("How many are still there? The answer is", "The number of {u} left is", "What {s} still has is"),
    "*": ("How much is it in all? The answer is", "The total number of {u} is", "Multiplied it is"),
    "/": ("How many for each? The answer is", "The number of {u} for each is", "Divided it is"),
}
