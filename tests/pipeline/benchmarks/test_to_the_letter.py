"""Each published form from its file to the score, by hand: prompts to the letter, tools, right and wrong.

A record of each form is read, asked and scored. Prompts and verdicts are typed from the paper's table
(section 8 of the method): the first number, or the first after an equation's sign; an answer within
the first 5, 10 or 20 words. Borders have a comment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.published import load, rules
from pipeline.evaluation.questions import from_published
from pipeline.evaluation.scoring import is_right
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit

RIGHT, WRONG = True, False


@dataclass(frozen=True)
class Form:
    """A published form: a file with one question, its prompt, and predictions with their verdicts."""

    benchmark: str
    file: str
    content: str
    prompt: str
    off: str  # the tool that is switched off; "" if none is
    cases: tuple[tuple[str, bool], ...]
    beside: tuple[str, str] = ("", "")  # another file that the benchmark needs, and its content

    def __str__(self) -> str:
        return f"{self.benchmark}-{self.file}"


def line(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def squad(language: str, question: str, context: str, answer: str) -> str:
    """SQuAD's nested JSON with one question."""
    asked = {"id": "q1", "question": question, "answers": [{"text": answer, "answer_start": 0}]}
    return json.dumps({"version": language, "data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


PANTHERS = (
    "The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading the "
    "NFL in interceptions with 24 and boasting four Pro Bowl selections."
)
PANTHER_PROMPT = (
    "Your task is to answer a question based on the following paragraph: The Panthers defense gave up "
    "just 308 points, ranking sixth in the league, while also leading the NFL in interceptions with 24 "
    "and boasting four Pro Bowl selections. Now answer the following question in English: "
)
GERMAN = "Wie viele Punkte gab die Verteidigung der Panthers ab?"
GERMAN_CONTEXT = "Die Verteidigung der Panthers gab nur 308 Punkte ab und belegte den sechsten Platz."
CHINESE = "黑豹队的防守丢了多少分？"
CHINESE_CONTEXT = "黑豹队的防守只丢了 308分，在联赛中排名第六，同时也以 24 次拦截领先国家橄榄球联盟。"
HINDI = "पैंथर्स डिफ़ेंस ने कितने अंक दिए?"

NUMBERS = [
    Form(
        "svamp",
        "SVAMP.json",
        json.dumps(
            [
                {
                    "ID": "chal-1",
                    "Body": "A box costs 76 dollars. If there is a discount of 25 dollars on each box",
                    "Question": "How much do you pay for a box?",
                    "Equation": "( 76.0 - 25.0 )",
                    "Answer": 51.0,
                    "Type": "Subtraction",
                }
            ]
        ),
        "A box costs 76 dollars. If there is a discount of 25 dollars on each box How much do "
        "you pay for a box? The answer is",
        "",
        (
            (" 51.", RIGHT),
            (" $51 for each box, which costs 76", RIGHT),  # the first number counts
            (" 76 - 25 = 51.", RIGHT),
            (" She has 3. So 76 - 25 = 51.", RIGHT),  # anywhere in the prediction
            (" 51. So 76 - 51 = 25.", WRONG),  # the equation counts, not the first number
            (" 76 dollars minus 25, so 51", WRONG),
            (" 51.5", WRONG),
            (" 510", WRONG),
            (" fifty-one", WRONG),
            (" 76 - 25 =", WRONG),
        ),
    ),
    Form(
        "asdiv",
        "ASDiv.xml",
        '<?xml version="1.0" encoding="UTF-8" ?>\n<Machine-Reading-Corpus-File>\n<ProblemSet>\n'
        '\t<Problem ID="nluds-0001" Grade="1" Source="http://www.k5learning.com">\n'
        "\t\t<Body>Six green pears and three red pears are in the bowl.</Body>\n"
        "\t\t<Question>How many pears are in the bowl?</Question>\n"
        "\t\t<Solution-Type>Addition</Solution-Type>\n\t\t<Answer>9 (pears)</Answer>\n"
        "\t\t<Formula>6+3=9</Formula>\n\t</Problem>\n</ProblemSet>\n</Machine-Reading-Corpus-File>\n",
        "Six green pears and three red pears are in the bowl. How many pears are in the bowl? The answer is",
        "",
        (
            (" 9.", RIGHT),
            (" 9 pears", RIGHT),
            (" 6+3=9", RIGHT),
            (" x = 9.0", RIGHT),
            (" 6 green and 3 red make 9", WRONG),
            (" 19", WRONG),
            (" -9", WRONG),
            ("", WRONG),
        ),
    ),
    Form(
        "mawps",
        "AddSub.json",
        json.dumps(
            [
                {
                    "iIndex": 1,
                    "lEquations": ["X = 70 - 27"],
                    "lSolutions": ["43"],
                    "sQuestion": "Ada had 70 shells and lost 27 of her shells . How many shells are left ? ",
                }
            ]
        ),
        "Ada had 70 shells and lost 27 of her shells . How many shells are left ? The answer is",
        "",
        (
            (" 43 shells", RIGHT),
            (" X = 70 - 27 = 43", WRONG),  # the first number after the first sign is 70
            (" 70 - 27 = 43", RIGHT),
            (" 70", WRONG),
            (" 43rd", RIGHT),
        ),
    ),
    Form(
        "mawps",
        "testset.json",
        json.dumps(
            [
                {
                    "id": 11,
                    "original_text": "Twice a number plus 5 is -1 . What is the number ?",
                    "segmented_text": "Twice a number plus 5 is -1 . What is the number ?",
                    "equation": "x=(-1.0-5.0)/2.0",
                    "ans": -3.0,
                }
            ]
        ),
        "Twice a number plus 5 is -1 . What is the number ? The answer is",
        "",
        (
            (" -3", RIGHT),
            (" −3.", RIGHT),  # a typographic minus
            (" x = -3", RIGHT),
            (" 3", WRONG),
            (" 5-3", WRONG),  # 5 is first
        ),
    ),
    Form(
        "mawps",
        "SingleOp.jsonl",
        line(input="A cake for 3 is cut from 2. How much does each get?", target=0.6666666666666666),
        "A cake for 3 is cut from 2. How much does each get? The answer is",
        "",
        (
            (" 2/3", RIGHT),
            (" 0.67", RIGHT),  # the calculator rounds to two decimals
            (" 2 / 3 = 0.67", RIGHT),
            (" 0.7", WRONG),
            (" 0.66", WRONG),
        ),
    ),
]

WORDS = [
    Form(
        "lama_squad",
        "Squad.jsonl",
        line(
            masked_sentences=["The sponsor of the cup was [MASK]."],
            obj_label="Gap",
            id="56be_0",
            sub_label="Squad",
        ),
        "Please complete the following text so that it is factually correct: The sponsor of the cup was",
        "WikiSearch",
        (
            (" Gap.", RIGHT),
            (" the clothing company called Gap", RIGHT),  # the fifth word
            (" the big clothing company called Gap", WRONG),  # the sixth
            (" GAP, Inc.", RIGHT),
            (" twenty-one-year-old second-hand low-cost clothing Gap", RIGHT),  # words end at white space
            (" – – – – – Gap", WRONG),  # so a dash between spaces is one
            (" Gaps", WRONG),
            (" Singapore", WRONG),
        ),
    ),
    Form(
        "lama_google_re",
        "place_of_birth_test.jsonl",
        line(
            pred="/people/person/place_of_birth",
            sub="/m/0",
            sub_label="Ada Lamb",
            obj_label="Lebanon",
            obj_aliases=["Lebanese Republic"],
            masked_sentences=["Ada Lamb is a journalist born in [MASK] ."],
            uuid="u",
        ),
        "Please complete the following text so that it is factually correct: Ada Lamb was born in",
        "WikiSearch",
        (
            (" Lebanon in 1970", RIGHT),
            ("\n\nLebanon", RIGHT),  # words count from the first that is not blank
            (" the Lebanese Republic", WRONG),  # aliases are not answers
            (" Beirut, the capital city of Lebanon", WRONG),  # the sixth word
            (" Beirut, the capital of Lebanon", RIGHT),
        ),
    ),
    Form(
        "lama_trex",
        "TREx.jsonl",
        line(uuid="u", predicate_id="P19", sub_label="Bob Lamb", obj_label="New York", evidences=[]),
        "Please complete the following text so that it is factually correct: Bob Lamb was born in",
        "WikiSearch",
        (
            (" New York City", RIGHT),
            (" a city named New York", RIGHT),  # the fourth and fifth word
            (" a big city named New York", WRONG),  # the answer ends with the sixth
            (" York, New", WRONG),
            (" NewYork", WRONG),
        ),
        ("relations.jsonl", line(relation="P19", template="[X] was born in [Y] .", type="N-1")),
    ),
    Form(
        "templama",
        "test.jsonl",
        line(
            query="Bob Lamb plays for _X_.",
            answer=[{"wikidata_id": "Q1", "name": "Buccaneers"}, {"wikidata_id": "Q2", "name": "Patriots"}],
            date="2020",
            id="Q3_P54_2020",
            relation="P54",
        ),
        "Please complete the following text so that it is factually correct: Bob Lamb plays for",
        "",
        (
            (" the Buccaneers.", RIGHT),
            (" the New England Patriots", RIGHT),
            (" one two three four five Patriots", WRONG),  # the sixth word
            (" the Patriot", WRONG),
        ),
    ),
    Form(
        "webquestions",
        "test.json",
        json.dumps(
            [
                {
                    "qId": "wqs000001",
                    "answers": ["Eve Pinkett Lamb"],
                    "qText": "who is the mom of ada lamb?",
                }
            ]
        ),
        "Answer the following question: who is the mom of ada lamb?",
        "QA",
        (
            (" Eve Pinkett Lamb.", RIGHT),
            (" Her name is Eve Pinkett-Lamb", RIGHT),
            (" " + "word " * 17 + "Eve Pinkett Lamb", RIGHT),  # the 18th to 20th word
            (" " + "word " * 18 + "Eve Pinkett Lamb", WRONG),  # to the 21st
            (" Eve Lamb", WRONG),
        ),
    ),
    Form(
        "webquestions",
        "webquestions.examples.test.json",
        json.dumps(
            [
                {
                    "url": "http://example.org/ada",
                    "targetValue": '(list (description "Padmé Amidala") (description Queen))',
                    "utterance": "what parts did ada lamb play?",
                }
            ]
        ),
        "Answer the following question: what parts did ada lamb play?",
        "QA",
        (
            (" Padmé Amidala", RIGHT),
            (" the queen", RIGHT),
            (" Padme Amidala", WRONG),  # an accent is part of its letter
            (" description", WRONG),
        ),
    ),
    Form(
        "nq",
        "NQ-open.dev.jsonl",
        line(
            question="when was the last flight to the moon",
            answer=["14 December 1972 UTC", "December 1972"],
        ),
        "Answer the following question: when was the last flight to the moon?",
        "QA",
        (
            (" It was in December 1972.", RIGHT),
            (" December, 1972", RIGHT),
            (" December of 1972", WRONG),
            (" " + "a " * 18 + "December 1972", RIGHT),  # the 19th and 20th word
            (" " + "a " * 19 + "December 1972", WRONG),
        ),
    ),
    Form(
        "nq",
        "nq-test.qa.csv",
        "what is the lowest wage per hour\t['€9.88 per hour.', '11.16']\r\n",
        "Answer the following question: what is the lowest wage per hour?",
        "QA",
        (
            (" It is €11.16.", RIGHT),
            (" 9.88 per hour", RIGHT),
            (" 1116", WRONG),
            (" 11,16", WRONG),
        ),
    ),
    Form(
        "triviaqa",
        "trivia-test.qa.csv",
        '"""The VT-3"" was a type of what?"\t"[\'🚁\', \'Helicopters\', ""Lamb\'s \'copter""]"\r\n',
        'Answer the following question: "The VT-3" was a type of what?',
        "QA",
        (
            (" helicopters, I think", RIGHT),
            (" Lambs copter", RIGHT),  # apostrophes do not count
            (" a helicopter", WRONG),  # no alias has the singular
            (" 🚁", WRONG),  # symbols alone can never be met
        ),
    ),
    Form(
        "triviaqa",
        "web-dev.json",
        json.dumps(
            {
                "Data": [
                    {
                        "Answer": {
                            "Aliases": ["Sunset Blvd", "Sunset Boulevard"],
                            "NormalizedAliases": ["sunset blvd"],
                            "Type": "WikipediaEntity",
                            "Value": "Sunset Boulevard",
                        },
                        "Question": "Which musical has the name of a street?",
                        "QuestionId": "tc_33",
                    }
                ],
                "Domain": "Web",
            }
        ),
        "Answer the following question: Which musical has the name of a street?",
        "QA",
        (
            (" It was “Sunset Boulevard”.", RIGHT),
            (" Sunset Blvd.", RIGHT),
            (" Sunset", WRONG),
            (" Cats", WRONG),
        ),
    ),
    Form(
        "mlqa_de",
        "test-context-en-question-de.json",
        squad("1.1", GERMAN, PANTHERS, "308"),
        PANTHER_PROMPT + "Wie viele Punkte gab die Verteidigung der Panthers ab?",
        "",
        (
            (" 308 points", RIGHT),
            (" one two three four five six seven eight nine 308", RIGHT),  # the tenth word
            (" one two three four five six seven eight nine ten 308", WRONG),
            (" 3080", WRONG),
            (" dreihundertacht", WRONG),
        ),
    ),
    Form(
        "xquad_zh",
        "xquad.zh.json",
        squad("1.1", CHINESE, CHINESE_CONTEXT, "308分"),
        PANTHER_PROMPT + "黑豹队的防守丢了多少分？",
        "",
        (
            (" just 308", RIGHT),
            (" just 308 points", RIGHT),
            (" 308", WRONG),  # the English answer counts, and it has two words
            (" 308分", WRONG),
        ),
        ("xquad.en.json", squad("1.1", "How many points did they give up?", PANTHERS, "just 308")),
    ),
    Form(
        "mlqa_hi",
        "MLQA.hi.jsonl",
        line(id="q1", context=f"{HINDI} {HINDI} {HINDI}", question=HINDI, answers={"text": ["३०८"]}),
        PANTHER_PROMPT + "पैंथर्स डिफ़ेंस ने कितने अंक दिए?",
        "",
        ((" 308", RIGHT), (" about 308 points in all", RIGHT), (" 30", WRONG)),
        (
            "MLQA.en.jsonl",
            line(id="q1", context=PANTHERS, question="How many points?", answers={"text": ["308"]}),
        ),
    ),
]


@pytest.mark.parametrize("form", [*NUMBERS, *WORDS], ids=str)
def test_from_the_file_to_the_score(tmp_path: Path, form: Form) -> None:
    source = tmp_path / form.file
    source.write_bytes(form.content.encode())
    if form.beside[0]:
        (tmp_path / form.beside[0]).write_bytes(form.beside[1].encode())
    published = load(form.benchmark, source)
    benchmark = from_published(published, form.benchmark)
    [question] = benchmark.questions
    assert question.prompt == form.prompt
    assert benchmark.tools_off == ({form.off} if form.off else set())
    for prediction, right in form.cases:
        assert is_right(question.scoring, prediction, question.answers) is right, prediction


DATESET = [  # question, day, predictions
    (
        "days-ago-0",
        ((" {answer} days ago", RIGHT), (" 0", WRONG), (" one two three four five {answer}", WRONG)),
    ),
    ("ago-day of the week-0", ((" It was a {answer}.", RIGHT), (" {answer}s", WRONG), (" day", WRONG))),
    ("in-day of the month-0", ((" the {ordinal}", RIGHT), (" {answer}", RIGHT), (" 1{answer}", WRONG))),
    ("month-yesterday-0", ((" It was {answer}.", RIGHT), (" a b c d e {answer}", WRONG), (" moon", WRONG))),
    ("holiday-years-0", ((" {answer} years", RIGHT), (" about {answer}", RIGHT), (" 17", WRONG))),
]


@pytest.mark.parametrize(("identity", "cases"), DATESET, ids=[identity for identity, _ in DATESET])
def test_a_question_of_dateset(identity: str, cases: tuple[tuple[str, bool], ...]) -> None:
    published = load("dateset", Path("0"))
    benchmark = from_published(published, "dateset")
    [question] = [question for question in benchmark.questions if question.id == identity]
    asked = question.prompt.removeprefix("Answer the following question: ")
    assert question.prompt == f"Answer the following question: {asked}"
    assert asked.endswith("?")
    assert benchmark.tools_off == frozenset()
    assert question.date is not None
    for prediction, right in cases:
        written = prediction.format(answer=question.answers[0], ordinal=question.answers[-1])
        assert is_right(question.scoring, written, question.answers) is right, written


def test_each_rule_has_its_cases() -> None:
    """At least 80 cases, and three or more for each form, right and wrong ones among them."""
    tables = [form.cases for form in [*NUMBERS, *WORDS]] + [cases for _, cases in DATESET]
    assert sum(map(len, tables)) >= 80
    assert all(len(cases) >= 3 and {right for _, right in cases} == {RIGHT, WRONG} for cases in tables)
    assert {form.benchmark.partition("_")[0] for form in [*NUMBERS, *WORDS]} | {"dateset"} == {
        name.partition("_")[0] for name in rules()
    }


TABLE = {  # section 8: prompt, score, tool that is off
    "lama_squad lama_google_re lama_trex": (
        "Please complete the following text so that it is factually correct: x",
        "first_words:5",
        {"WikiSearch"},
    ),
    "asdiv asdiv_number svamp mawps": ("x q The answer is", "number", set()),
    "webquestions nq triviaqa": ("Answer the following question: q", "first_words:20", {"QA"}),
    "mlqa_es mlqa_de mlqa_hi mlqa_vi mlqa_zh mlqa_ar xquad_es xquad_de xquad_hi xquad_vi xquad_zh xquad_ar": (
        "Your task is to answer a question based on the following paragraph: x Now answer the following "
        "question in English: q",
        "first_words:10",
        set(),
    ),
    "templama": (
        "Please complete the following text so that it is factually correct: x",
        "first_words:5",
        set(),
    ),
    "dateset": ("Answer the following question: q", "first_words:5", set()),
}


def test_the_table_is_that_of_the_paper() -> None:
    found = {
        name: (row.prompt.format(x="x", q="q"), row.scoring, row.tools_off) for name, row in rules().items()
    }
    assert found == {name: row for names, row in TABLE.items() for name in names.split()}
    assert all(off <= set(PACKAGED) for _, _, off in found.values())
