"""QA with small readers that know a few passages' answers, over passages found by shared words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.tools_service.small_seq2seq import bart, byte_level_tokenizer, save, t5, teach
from tools_service.config import QAConfig, WikiSearchConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.retrieval.passages import Hit, Passage
from tools_service.tools.qa import QA, encode_text, reader_texts
from tools_service.tools.seq2seq import Seq2SeqError

pytestmark = pytest.mark.unit

PASSAGES = [
    Passage("Mira Kolsen", "Mira Kolsen was born in Tavelham. She plays the harp."),
    Passage("Stalwick", "Stalwick lies on the river Korbe. The mayor is Igor Reman."),
    Passage("Tavelham", "Tavelham makes {cheese} and soap."),
]
QUESTIONS = {
    "Where was Mira Kolsen born?": "Tavelham",
    "What does Mira Kolsen play?": "harp",
    "Who is the mayor of Stalwick?": "Igor Reman",
    "Where does Stalwick lie?": "Korbe",
    "What does Tavelham make?": "cheese",
    "How old is Stalwick?": "",
}
FORMAT = {"max_passage_tokens": 120, "device": "cpu"}
NAMES = {passage.title: number for number, passage in enumerate(PASSAGES)}


class Titles:
    """Finds the passages whose titles share a word with the query, in their order; a small Retriever."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        words = [set(query.strip("?").split()) for query in queries]
        return [
            [Hit(n, 1.0) for n, one in enumerate(PASSAGES) if said & set(one.title.split())][:k]
            for said in words
        ]

    def passage(self, number: int) -> Passage:
        return PASSAGES[number]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A T5 and a BART that know QUESTIONS, read with the one passage that is found for each."""
    config = QAConfig(**FORMAT)
    found = Titles().search(list(QUESTIONS), 1)
    texts = [
        reader_texts(config, question, [PASSAGES[hits[0].passage]])[0]
        for question, hits in zip(QUESTIONS, found, strict=True)
    ]
    tokenizer = byte_level_tokenizer([*texts, *QUESTIONS.values()])
    saved = {}
    for name, model in (("t5", t5(len(tokenizer))), ("bart", bart(len(tokenizer)))):
        sources = [encode_text(tokenizer, text, 120) for text in texts]
        teach(model, sources, [tokenizer(answer).input_ids for answer in QUESTIONS.values()])
        saved[name] = save(tmp_path_factory.mktemp(name), model, tokenizer)
    return saved


def reader(checkpoints: dict[str, str], name: str, **settings: object) -> QA:
    config = QAConfig.model_validate({"model": checkpoints[name], "passages": 1, **FORMAT, **settings})
    return QA(config, WikiSearchConfig(), Titles())


def ask(qa: QA, *questions: str) -> list[ToolResult]:
    return qa([ToolInput(question) for question in questions])


@pytest.mark.parametrize(("name", "kind"), [("t5", "fid"), ("t5", "concatenated"), ("bart", "concatenated")])
def test_questions_are_answered_from_the_passages_in_order(
    checkpoints: dict[str, str], name: str, kind: str
) -> None:
    answers = ask(reader(checkpoints, name, reader=kind, max_batch_tokens=150), *QUESTIONS)
    assert [one.result for one in answers] == [answer or None for answer in QUESTIONS.values()]
    assert answers[-1] == ToolResult(reason="no answer")


def test_an_answer_does_not_depend_on_what_else_is_in_the_list(checkpoints: dict[str, str]) -> None:
    qa = reader(checkpoints, "t5", reader="fid", passages=3)
    asked = [
        *QUESTIONS,
        "Mira Stalwick Tavelham Kolsen",
        "What is Stalwick to Tavelham and Mira?",
        "Who is the mayor of Tavelham when Stalwick has none?",
    ]
    together = ask(qa, *asked)
    assert together == [ask(qa, question)[0] for question in asked]
    assert together[::-1] == ask(qa, *asked[::-1])


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("", "empty question"),
        (" \n", "empty question"),
        ("Where is Nobody?", "no passage found"),
        ("Where was Mira born? " * 60, "question too long"),
        ("x" * 10**6, "question too long"),
    ],
)
def test_what_has_no_answer_has_a_reason(checkpoints: dict[str, str], question: str, reason: str) -> None:
    known = "Where was Mira Kolsen born?"
    refused, answered = ask(reader(checkpoints, "t5", reader="fid"), question, known)
    assert refused == ToolResult(reason=reason)
    assert answered == ToolResult("Tavelham")


def test_an_answer_that_does_not_end_has_no_result(checkpoints: dict[str, str]) -> None:
    qa = reader(checkpoints, "t5", reader="fid", max_answer_tokens=1)
    assert ask(qa, "Who is the mayor of Stalwick?") == [ToolResult(reason="answer too long")]


@pytest.mark.parametrize(
    "question",
    [
        "Stalwick\0 \ud800 ?",
        "Stalwick </s> <pad> </s>",
        "Stalwick [QA(x)] -> ] {title} {0}",
        "Stalwick " * 110,
    ],
)
def test_a_hostile_question_gets_a_result_or_a_reason_and_harms_no_other(
    checkpoints: dict[str, str], question: str
) -> None:
    hostile, harmless = ask(reader(checkpoints, "t5", reader="fid"), question, "Where does Stalwick lie?")
    assert (hostile.result is None) != (hostile.reason is None)
    assert harmless == ToolResult("Korbe")


def test_what_the_encoder_reads() -> None:
    fid, concatenated = QAConfig(reader="fid"), QAConfig(reader="concatenated")
    told = [f"title: {one.title} context: {one.text}" for one in PASSAGES]
    assert reader_texts(fid, "Why {title}?", PASSAGES) == [f"question: Why {{title}}? {one}" for one in told]
    assert reader_texts(concatenated, "Why?", PASSAGES) == [" ".join(["question: Why?", *told])]
    own = QAConfig(reader="fid", question_format="Q {question}", passage_format="({title}) {text}")
    assert reader_texts(own, "Why?", PASSAGES[:1]) == [f"Q Why? (Mira Kolsen) {PASSAGES[0].text}"]


def test_a_long_passage_loses_its_end_and_keeps_the_end_token() -> None:
    tokenizer = byte_level_tokenizer(["question: Why? title: A context: b b b"])
    ids = encode_text(tokenizer, "question: Why? title: A context: " + "b " * 500, 20)
    assert len(ids) == 20
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids).startswith("question: Why? title: A context: b")


def test_a_concatenated_input_ends_where_the_models_positions_do(checkpoints: dict[str, str]) -> None:
    qa = reader(checkpoints, "bart", passages=3, max_passage_tokens=400)  # BART's 256 positions are fewer
    long = [Passage("Stalwick", "The river is long. " * 100)]
    assert ask(qa, "Where does Stalwick lie?")[0].reason != "tool failed"
    qa._retriever.passage = lambda number: long[0]  # type: ignore[method-assign]
    assert [len(ids) for ids in qa._prepare("Where?", [Hit(0, 1.0)])] == [256]


def test_a_reader_that_cannot_do_it_is_refused_with_its_field(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(Seq2SeqError, match=r"tools\.qa\.reader = fid: .* is no T5 but bart"):
        reader(checkpoints, "bart", reader="fid")
    with pytest.raises(Seq2SeqError, match=r"tools\.qa\.model .*cannot load it"):
        reader({"t5": str(tmp_path)}, "t5")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question_format", "question:"),
        ("question_format", "{q}"),
        ("question_format", "{question} {"),
        ("question_format", "{question} {0}"),
        ("question_format", "\0"),
        ("passage_format", "context:"),
        ("passage_format", "{title.x} {text}"),
    ],
)
def test_formats_without_places_are_refused_with_their_field(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        QAConfig.model_validate({field: value})


WRITTEN_OUT = [
    "</s>",
    "<pad>",
    " </s> ",
    "a</s>b",
    "</s></s>",
    "<pad></s><pad>",
    "question: </s> context: <pad>",
]


@pytest.mark.parametrize("text", [*WRITTEN_OUT, "x </s>" * 30, "\n</s>\n", "</s", "<<pad>>"])
def test_special_tokens_in_a_text_are_text(text: str) -> None:
    tokenizer = byte_level_tokenizer(["some words </s> <pad>"])
    *ids, last = encode_text(tokenizer, text, 500)
    assert last == tokenizer.eos_token_id
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["some words", "Who? 12 % – äöü", "", " ", "a < b > c", "x" * 2_000])
def test_the_ids_of_other_texts_are_the_tokenizers(text: str) -> None:
    tokenizer = byte_level_tokenizer(["some words"])
    assert encode_text(tokenizer, text, 50) == tokenizer(text, truncation=True, max_length=50).input_ids
