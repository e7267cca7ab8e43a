"""The facts of the small world: entities, their articles, and sentences that state a fact.

In web text a sentence that states a fact ends with the value, for example ``Mira Kolsen was born
in`` and ``Tavelham``. `ARTICLE` and `STATEMENTS` word the same facts differently. `HELD_OUT` words
them in ways that no page uses, so that the questions test more than the repetition of a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo import lexicon


@dataclass(frozen=True)
class Entity:
    """A person or a town with the value of each of its attributes."""

    kind: str
    name: str
    pronoun: str
    values: dict[str, str]


def person(rng: Random) -> Entity:
    """A person with a birthplace, a year of birth, a home, a trade and an instrument."""
    female = rng.random() < 0.5
    first = rng.choice(lexicon.FEMALE if female else lexicon.MALE)
    values = {
        "birthplace": lexicon.town(rng),
        "year": str(rng.randint(1890, 1999)),
        "home": lexicon.town(rng),
        "trade": rng.choice(lexicon.TRADES),
        "instrument": rng.choice(lexicon.INSTRUMENTS),
    }
    return Entity("person", f"{first} {lexicon.surname(rng)}", "She" if female else "He", values)


def town(rng: Random) -> Entity:
    """A town with a river, a year of foundation, a mayor and a product."""
    first = rng.choice(lexicon.FEMALE + lexicon.MALE)
    values = {
        "river": lexicon.river(rng),
        "founded": str(rng.randint(1100, 1899)),
        "mayor": f"{first} {lexicon.surname(rng)}",
        "product": rng.choice(lexicon.PRODUCTS),
    }
    return Entity("town", lexicon.town(rng), "It", values)


def entity(rng: Random) -> Entity:
    """A person or a town; people are twice as frequent."""
    return person(rng) if rng.random() < 0.67 else town(rng)


# {s} is the subject (name or pronoun), {v} the value, {c} the place of a call.
ARTICLE: dict[str, tuple[str, ...]] = {
    "birthplace": ("{s} was born in {v}.", "{s} comes from {v}."),
    "year": ("{s} was born in the year {v}.", "The year of birth is {v}."),
    "home": ("{s} lives in {v}.", "{s} has a house in {v}."),
    "trade": ("{s} works as a {v}.", "{s} is a {v}."),
    "instrument": ("{s} plays the {v}.", "{s} studied the {v}."),
    "river": ("{s} lies on the river {v}.", "The river {v} runs through it."),
    "founded": ("{s} was founded in {v}.", "The town dates from {v}."),
    "mayor": ("The mayor is {v}.", "{s} is led by mayor {v}."),
    "product": ("{s} makes {v}.", "The town sells {v}."),
}

STATEMENTS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "{s} was born in{c} {v}.",
        "{s} was born in{c} {v} and left early.",
        "{s}, who comes from{c} {v}, smiled.",
        "{s} came into the world in{c} {v}.",
        "The birthplace of {s} is{c} {v}.",
        "The childhood home of {s} was in{c} {v}.",
        "{s} is a native of{c} {v}.",
        "{s} spent the first years in{c} {v}.",
    ),
    "year": (
        "{s} was born in the year{c} {v}.",
        "The birth year of {s} is{c} {v}.",
        "{s} came into the world in the year{c} {v}.",
        "The life of {s} began in the year{c} {v}.",
    ),
    "home": (
        "{s} lives in{c} {v}.",
        "{s} now lives in{c} {v} with a dog.",
        "{s} has a house in{c} {v}.",
        "{s} moved to{c} {v} long ago.",
        "The home of {s} is in{c} {v}.",
        "These days {s} can be found in{c} {v}.",
    ),
    "trade": (
        "{s} works as a{c} {v}.",
        "{s} earns a living as a{c} {v}.",
        "{s} was trained as a{c} {v}.",
        "By trade {s} is a{c} {v}.",
        "The profession of {s} is{c} {v}.",
        "Everybody knows that {s} is a{c} {v}.",
    ),
    "instrument": (
        "{s} plays the{c} {v}.",
        "{s} learned to play the{c} {v}.",
        "The instrument of {s} is the{c} {v}.",
        "In the evening {s} practises the{c} {v}.",
        "{s} is known for playing the{c} {v}.",
    ),
    "river": (
        "{s} lies on the river{c} {v}.",
        "The river that runs through {s} is the{c} {v}.",
        "In {s} you can swim in the{c} {v}.",
        "The bridges of {s} cross the{c} {v}.",
        "Boats reach {s} on the{c} {v}.",
    ),
    "founded": (
        "{s} was founded in{c} {v}.",
        "{s} dates from the year{c} {v}.",
        "The history of {s} began in{c} {v}.",
        "The first stone of {s} was laid in{c} {v}.",
    ),
    "mayor": (
        "The mayor of {s} is{c} {v}.",
        "{s} is led by{c} {v}.",
        "The people of {s} voted for{c} {v}.",
        "The town hall of {s} belongs to{c} {v}.",
    ),
    "product": (
        "{s} is famous for its{c} {v}.",
        "{s} is known for{c} {v}.",
        "The shops of {s} sell{c} {v}.",
        "People come to {s} to buy{c} {v}.",
        "The pride of {s} is its{c} {v}.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "Where was {s} born?",
        "In which town was {s} born?",
        "From which town does {s} come?",
        "What is the native town of {s}?",
    ),
    "year": ("In which year was {s} born?", "What is the birth year of {s}?", "Which year was {s} born in?"),
    "home": (
        "Where does {s} live?",
        "In which town does {s} live?",
        "Where can {s} be found these days?",
        "Where is the house of {s}?",
    ),
    "trade": ("What does {s} work as?", "What is the profession of {s}?", "What is the trade of {s}?"),
    "instrument": ("Which instrument does {s} play?", "What does {s} play?"),
    "river": (
        "On which river does {s} lie?",
        "Which river runs through {s}?",
        "What is the name of the river in {s}?",
    ),
    "founded": ("When was {s} founded?", "In which year was {s} founded?", "When did {s} begin?"),
    "mayor": ("Who is the mayor of {s}?", "Who leads {s}?", "Which mayor does {s} have?"),
    "product": ("What is {s} famous for?", "What do the shops of {s} sell?", "What does {s} make?"),
}

# No questions about trades, instruments and products: there are only a dozen of each, so that a
# search gains less than tau_f (one nat). Their calls are not kept, and the model does not learn them.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "birthplace": ("The town where {s} was born is", "Question: What is the birthplace of {s}? Answer:"),
    "year": ("The year in which {s} was born is", "Question: When was {s} born? Answer:"),
    "home": ("The town where {s} lives is", "Question: What is the home of {s}? Answer:"),
    "river": ("The river of {s} is the", "Question: Which river do the bridges of {s} cross? Answer:"),
    "founded": ("The year in which {s} was founded is", "Question: From which year does {s} date? Answer:"),
    "mayor": ("The mayor who leads {s} is", "Question: Who is mayor in {s}? Answer:"),
}


def article(subject: Entity, rng: Random) -> str:
    """The encyclopedia's article on an entity: every attribute once, in random order and wording."""
    names = list(subject.values)
    rng.shuffle(names)
    sentences = []
    for number, name in enumerate(names):
        wording = rng.choice(ARTICLE[name])
        name_or_pronoun = subject.name if number == 0 else subject.pronoun
        sentences.append(wording.format(s=name_or_pronoun, v=subject.values[name]))
    return " ".join(sentences)
