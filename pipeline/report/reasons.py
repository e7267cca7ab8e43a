"""Every reason under which an annotation loses texts, draws and calls: what it means, what to change.

In: a reason as rows and manifests hold it (docs/method.md, "Reasons"). Out: an `Explanation`. The table is
complete (tests/pipeline/report/test_reasons.py compares it with the code); tools of a user's own give
reasons of their own, which get a general sentence. losses.py takes its advice from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.base.records import POSITION_NOT_SCORABLE, reason_kind
from pipeline.storage.counts import DAMAGED_FILE
from tools_service.contract import tool

ReasonStage = Literal["skipped", "failed", "not selected", "discarded draw", "no result", "not scored"]


class Explanation(NamedTuple):
    """A reason in plain words. `advice` is a clause without a full stop; empty if nothing is wrong.

    `{tool}` in it stands for the tool's name as options have it.
    """

    meaning: str
    advice: str = ""


_LIMIT = "sets the limit"
_REPAIR = "repair it, or leave it out of --corpus.paths"
_FOREIGN = "the corpus needs texts with passages in another language"
_WHEN_IT_WORKS = "annotate again when the tool works"

REASONS: Mapping[ReasonStage, Mapping[str, Explanation]] = {
    "skipped": {
        "short passage": Explanation(
            "The passage is too short, often the last lines of a page.",
            f"--corpus.min-characters {_LIMIT}",
        ),
        "long word": Explanation(
            "The passage has a word without a space that is longer than a text may be.",
            f"--corpus.max-tokens {_LIMIT}",
        ),
        "document too long": Explanation(
            "The document is a dump or a log rather than a page.",
            f"--corpus.max-document-characters {_LIMIT}",
        ),
        "line too long": Explanation("A line of the file is too long to be read.", _REPAIR),
        "no text field": Explanation(
            "The record has none of the fields that may hold the text.",
            "--corpus.text-field names the field with the text",
        ),
        "text is not a string": Explanation(
            "The field for the text holds another kind of value.",
            "--corpus.text-field names the field with the text",
        ),
        "call syntax": Explanation(
            "The text held call syntax already, which a model would learn as if a tool had answered.",
            "--corpus.no-skip-call-syntax keeps them",
        ),
        "not JSON": Explanation("A line of the file is not JSON.", _REPAIR),
        "not JSON lines": Explanation(
            "The file holds one JSON value over several lines.", "write one JSON object a line"
        ),
        "not an object": Explanation(
            "A line holds another JSON value than an object.", "write one JSON object a line"
        ),
        "not UTF-8": Explanation("The text has bytes that are not UTF-8.", "convert the file to UTF-8"),
        "not Unicode": Explanation("The text has half of a surrogate pair.", _REPAIR),
        "NUL character": Explanation("The document is binary, or was decoded wrongly.", _REPAIR),
        "empty document": Explanation("The document has no text."),
        "empty file": Explanation("The file has no document."),
        "too large": Explanation(
            "A row group of a Parquet file expands to more than the memory holds.",
            "write the file with smaller row groups",
        ),
        DAMAGED_FILE: Explanation(
            "A file is damaged or cut off. The texts before the damage are annotated.",
            "restore the file and annotate again",
        ),
    },
    "failed": {
        "process died": Explanation(
            "The process that annotated this text alone died several times, mostly for want of memory.",
            "lower --model.max-batch-tokens or --corpus.max-tokens; --retry-failed tries them again",
        ),
        "OutOfMemoryError": Explanation(
            "The memory of the device did not suffice for this text.",
            "lower --model.max-batch-tokens or --corpus.max-tokens; --retry-failed tries them again",
        ),
        "MemoryError": Explanation(
            "The memory of the machine did not suffice for this text.",
            "lower --model.max-batch-tokens or --corpus.max-tokens; --retry-failed tries them again",
        ),
        "SelectionError": Explanation(
            "The function that selects texts for a tool failed.",
            "mend the function that the tool's select names; --retry-failed tries them again",
        ),
    },
    "not selected": {
        "context": Explanation(
            "Beside the tool's prompt there is no room in the model for the text and a call.",
            "lower --corpus.max-tokens, or shorten the prompt (--method.prompts)",
        ),
        "no URL": Explanation(
            "The tool needs the date of the page, and the document has no URL.",
            "--corpus.url-field names the field with the URL",
        ),
        "no date in the URL": Explanation(
            "The tool needs the date of the page, and its URL has no whole date.",
            "the calendar needs URLs with a whole date, like /2023/01/30/",
        ),
        "numbers without a sign of arithmetic": Explanation(
            "The text has numbers, but none seems to be computed from others.",
            "--method.calculator.select.random-share sets their share",
        ),
        "fewer than three numbers": Explanation(
            "The text has too few numbers for arithmetic.",
            "the corpus needs texts with arithmetic",
        ),
        "no chunk in another language": Explanation(
            "No passage of the text is in another language with enough certainty.", _FOREIGN
        ),
        "not within English": Explanation(
            "The passage in another language does not stand between English ones.",
            "the corpus needs passages in another language within English texts",
        ),
        "no match of the pattern": Explanation(
            "The pattern of the tool's select matches nothing in the text.",
            "change the pattern, or set random_share, in the tool's select",
        ),
    },
    "discarded draw": {
        "wrong_tool": Explanation(
            "The model wrote another name than the tool's after the bracket.",
            "if most draws end so, --method.{tool}.given-name draws after the name of the tool",
        ),
        "too_long": Explanation(
            "The model did not finish the call within the limit.",
            f"--method.{{tool}}.max-call-tokens {_LIMIT}",
        ),
        "special_token": Explanation("The model drew a special token, such as the end of the text."),
        "newline": Explanation("The model broke the line within the call."),
        "control_character": Explanation("The call has a control character."),
        "bracket": Explanation("The input has an opening bracket, which would begin another call."),
        "arrow": Explanation("The input has an arrow, which separates the result from the call."),
        "broken_character": Explanation("The tokens of the call end within a character."),
        "input_not_empty": Explanation("The model gave an input to a tool that takes none."),
        "no_parenthesis": Explanation("The call ends without a closing parenthesis."),
        "empty_input": Explanation("The model gave no input to a tool that needs one."),
        "name_too_unlikely": Explanation(
            "The tool's name was too unlikely at this position to draw a call after it exactly.",
        ),
    },
    "no result": {
        tool.DEADLINE: Explanation(
            "The tool gave no answer in time.",
            f"add replicas or raise --tools.{{tool}}.deployment.deadline-s; {_WHEN_IT_WORKS}",
        ),
        tool.OVERLOADED: Explanation(
            "The tool refused the call until the deadline, because it had too many.",
            f"add replicas of the tool; {_WHEN_IT_WORKS}",
        ),
        tool.UNREACHABLE: Explanation("The tool was not running or could not be reached.", _WHEN_IT_WORKS),
        tool.REPLICA_DIED: Explanation("Two replicas of the tool died during the call.", _WHEN_IT_WORKS),
        tool.TOOL_FAILED: Explanation(
            "The tool raised an exception; the log names it.", f"mend the tool; {_WHEN_IT_WORKS}"
        ),
        tool.MALFORMED_ANSWER: Explanation(
            "The tool returned something else than a result or a reason.", f"mend the tool; {_WHEN_IT_WORKS}"
        ),
        tool.TOOL_CHANGED: Explanation(
            "The server no longer has the tool, or changed its parameters.", "declare the tool anew"
        ),
        tool.EMPTY_RESULT: Explanation("Nothing was left of the result when it was made safe to insert."),
        "no result": Explanation("The tool has no result for this input."),
        "wrong input": Explanation("The tool refused the input."),
        "no finite number": Explanation("The result is no finite number."),
        "tool error": Explanation("The server says that the call failed; the text is its own."),
        "not text": Explanation("The answer holds other content than text, such as an image."),
        "answer too long": Explanation("The answer is longer than the tool may give."),
        "missing argument": Explanation("The input lacks an argument that the tool needs."),
        "repeated argument": Explanation("The input names an argument twice."),
        "wrong value": Explanation("An argument has a value that the tool does not take."),
        "wrong arguments": Explanation("The arguments do not fit the tool's parameters."),
        "unknown argument": Explanation("The input names an argument that the tool does not have."),
        "too many arguments": Explanation("The input has more arguments than the tool takes."),
        "not key=value": Explanation("The input has an argument without its name."),
        "arguments cannot be checked": Explanation(
            "The check of the arguments failed.", "mend the schema of the tool's parameters"
        ),
        "not one of the choices": Explanation("An argument is none of the values that the tool takes."),
        "out of range": Explanation("A number is outside the range that the tool takes."),
        "wrong length": Explanation("An argument is shorter or longer than the tool takes."),
        "not a number": Explanation("An argument has to be a number."),
        "not a whole number": Explanation("An argument has to be a whole number."),
        "not true or false": Explanation("An argument has to be true or false."),
        "not a list": Explanation("An argument has to be a list."),
        "not an object": Explanation("An argument has to be an object."),
        "too long": Explanation("An argument is too long to be read."),
        "misplaced quote": Explanation("A quotation mark is not closed, or text stands beside it."),
        "wrong escape": Explanation("A string between quotation marks has a wrong escape."),
        "empty question": Explanation("The question is empty."),
        "question too long": Explanation("The question is longer than the tool takes."),
        "no passage found": Explanation(
            "The search finds no passage for the question.",
            "if it is frequent, index pages about what the corpus is about",
        ),
        "no answer": Explanation("The model that answers questions gave no answer."),
        "empty query": Explanation("The query is empty."),
        "query too long": Explanation("The query is longer than the tool takes."),
        "no word to search for": Explanation("The query has no word, only signs."),
        "nothing found": Explanation(
            "No page has a word of the query.",
            "if it is frequent, index pages about what the corpus is about",
        ),
        "empty expression": Explanation("The expression is empty."),
        "expression too long": Explanation("The expression is longer than the tool takes."),
        "not arithmetic": Explanation("The input has something else than numbers, + - * / and parentheses."),
        "operator missing": Explanation("Two numbers have no operator between them."),
        "number missing": Explanation("An operator has no number beside it."),
        "malformed number": Explanation("A number is written in a way that the tool does not read."),
        "unbalanced parentheses": Explanation("A parenthesis is not opened or not closed."),
        "nested too deep": Explanation("The parentheses are nested too deep."),
        "division by zero": Explanation("The expression divides by zero."),
        "result too large": Explanation("The result has too many digits."),
        "input not empty": Explanation("The tool takes no input, and got one."),
        "no date": Explanation("The document has no date for this call."),
        "malformed date": Explanation("The date of the document is no calendar date."),
        "empty text": Explanation("There is no text to translate."),
        "text too long": Explanation("The text is longer than the translation model takes."),
        "language not certain": Explanation("The language of the text was not identified with certainty."),
        "already English": Explanation("The text is English already."),
        "language not known to the model": Explanation("The translation model does not know the language."),
        "empty translation": Explanation("The translation is empty."),
        "translation too long": Explanation("The translation is longer than the tool may give."),
    },
    "not scored": {
        "context": Explanation(
            "The text together with the call and its result does not fit the model.",
            "lower --corpus.max-tokens",
        ),
        "input_only_after_position": Explanation(
            "The input stands in the text only after the call, so the model could not have known it there.",
        ),
        "unwritable": Explanation("The result cannot be written within a call."),
        "call_not_scorable": Explanation("The call stands at a first token that has no loss without a BOS."),
        POSITION_NOT_SCORABLE: Explanation(
            "The first token of a text has no loss, because the model has no BOS token."
        ),
    },
}
"""By stage and reason."""

NOT_SCORED = frozenset(REASONS["not scored"])
"""The reasons of `discarded` that calls with a result have."""

_OTHER: Mapping[ReasonStage, Explanation] = {
    "skipped": Explanation("The text could not be read."),
    "failed": Explanation(
        "A step failed on this text; the log has the whole error.", "--retry-failed tries them again"
    ),
    "not selected": Explanation("The rule that selects texts for this tool gave this reason."),
    "discarded draw": Explanation("The text that the model drew is not a call of this tool."),
    "no result": Explanation("The tool gave this reason for having no result."),
    "not scored": Explanation("The call has no losses."),
}


def explain(stage: ReasonStage, reason: str, tool: str | None = None) -> Explanation:
    """What a reason means and what to change. A reason that no code here gives has a general meaning.

    Of `KIND: details` the kind decides. `tool` is the name that the advice's options are for.
    """
    known = REASONS[stage]
    explanation = known.get(reason) or known.get(reason_kind(reason)) or _OTHER[stage]
    section = "TOOL" if tool is None else tool.lower()
    return explanation._replace(advice=explanation.advice.replace("{tool}", section))
