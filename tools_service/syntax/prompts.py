"""The annotation prompts P(x), one file per tool (paper section 2; Appendix A).

In: a tool's name and, for a user's own prompts, a file or a folder. Out: the strings before and after the
text, or what is wrong with the file and where. A prompt file has an instruction, a few demonstrations, then
``Input: {text}`` and ``Output:``. A demonstration is a text with the same labels (they need not be these
words): behind ``Input:`` as it is, behind ``Output:`` with calls in it. The space in front of ``{text}``
belongs to the text. This module does not tokenize, and calls no tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import size_of_file
from tools_service.base.printable import printable
from tools_service.contract.declarations import with_installed
from tools_service.syntax.demonstrations import Demonstration, Problem, read_demonstration

PROMPT_FOLDER = Path(__file__).parent / "prompt_files"
TEXT = "{text}"

_MAX_BYTES = 2**20
_MAX_PROBLEMS = 3  # in one message
_MAX_SHOWN = 40  # characters of a prompt in a message


class PromptError(ConfigurationError):
    """A prompt file that is missing or does not fit its tool."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """P(x) is `prefix`, a space, x, `suffix`. The model continues it with x and its calls."""

    tool: str
    prefix: str
    suffix: str


def load_prompt(
    tool: str, folder: Path | None = None, file: Path | None = None, other_tools: Iterable[str] = ()
) -> PromptTemplate:
    """The prompt of `tool`: `file`, or the file in `folder` with its name in lower case and ``.txt``.

    Raises PromptError, which names the lines, for a file that `prompt_problems` finds fault with.
    """
    path = file or (folder or PROMPT_FOLDER) / f"{tool.lower()}.txt"
    template = read_prompt_file(path, tool)
    if problems := prompt_problems(template, tool, other_tools):
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise PromptError(f"{path}: {'; '.join(map(str, problems[:_MAX_PROBLEMS]))}{more}")
    prefix, suffix = template.split(TEXT)
    return PromptTemplate(tool, prefix[:-1], suffix)


def read_prompt_file(path: Path, tool: str) -> str:
    """The text of a prompt file without white space at its end. Raises PromptError if it is no text."""
    try:
        if (size := size_of_file(path)) > _MAX_BYTES:
            raise PromptError(f"prompt for {tool}: {path} has {size:,} bytes, which is no prompt")
        data = path.read_bytes()
    except OSError as error:
        advice = (
            "; the command `toolformer-tools prompt` drafts one"
            if isinstance(error, FileNotFoundError)
            else ""
        )
        raise PromptError(f"prompt for {tool}: cannot read {path}: {error.strerror}{advice}") from error
    except ValueError as error:
        raise PromptError(f"prompt for {tool}: {path} is {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(f"{path}: line {line}: not UTF-8: {error.reason}; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()


def prompt_problems(
    template: str, tool: str, other_tools: Iterable[str] = (), takes_input: bool | None = None
) -> list[Problem]:
    """What is wrong with the prompt of `tool`, by line: nothing, if it can be used.

    It needs one ``{text}`` with a space in front of it and a label behind, a call of this tool, none of
    an installed tool or of `other_tools`, and demonstrations whose texts are equal but for their calls.
    `takes_input` None: calls may have an input or none.
    """
    places = [match.start() for match in re.finditer(re.escape(TEXT), template)]
    if len(places) != 1:
        line = _line(template, places[1] if places else len(template))
        found = f"a second {TEXT}" if places else f"no {TEXT}"
        return [Problem(line, f"{found}; exactly one belongs into a prompt, in 'Input: {TEXT}' at its end")]
    problems = []
    prefix, suffix = template.split(TEXT)
    if not prefix.endswith(" ") or not prefix.strip() or not suffix:
        problems.append(
            Problem(_line(template, places[0]), f"write 'Input: {TEXT}', then 'Output:' on a line of its own")
        )
    for name in with_installed(other_tools):
        if name == tool:
            continue
        for match in re.finditer(rf"\[{re.escape(name)}\(", template):
            message = f"a call of {name}; a prompt shows calls of {tool} and of no other tool"
            problems.append(Problem(_line(template, match.start()), message))
    problems += _demonstration_problems(template, tool, takes_input)
    return sorted(problems, key=lambda problem: problem.line)


def demonstrations(template: str, tool: str) -> list[Demonstration]:
    """The demonstrations of a prompt without problems."""
    return [found for found in _read_demonstrations(template, tool, None) if isinstance(found, Demonstration)]


def _demonstration_problems(template: str, tool: str, takes_input: bool | None) -> Iterator[Problem]:
    found = list(_read_demonstrations(template, tool, takes_input))
    wrong = [one for one in found if isinstance(one, Problem)]
    right = [one for one in found if isinstance(one, Demonstration)]
    yield from wrong
    if not wrong and (f"[{tool}(" not in template or (right and not any(one.calls for one in right))):
        yield Problem(1, f"no call of {tool} is shown; write one, [{tool}(…)], where its result helps")


def _read_demonstrations(
    template: str, tool: str, takes_input: bool | None
) -> Iterator[Demonstration | Problem]:
    prefix, _, suffix = template.partition(TEXT)
    *lines, slot = prefix.split("\n")
    labels = slot.strip(), suffix.strip().partition("\n")[0]
    if not all(labels) or labels[0] == labels[1]:
        return
    for pair in _pairs(lines, *labels):
        if isinstance(pair, Problem):
            yield pair
            continue
        line, text, with_calls = pair
        if not (text.startswith(" ") and with_calls.startswith(" ")):
            yield Problem(line, f"the texts behind '{labels[0]}' and '{labels[1]}' must begin with a space")
            continue
        found = read_demonstration(line, with_calls[1:], tool, takes_input)
        if isinstance(found, Demonstration) and found.text != text[1:]:
            yield Problem(line, _difference(found.text, text[1:]))
        else:
            yield found


def _pairs(lines: list[str], input_label: str, output_label: str) -> Iterator[tuple[int, str, str] | Problem]:
    """The texts without and with calls, without their labels, and the line of the latter, from 1."""
    number = 0
    while number < len(lines):
        first = number
        number += 1
        if lines[first].startswith(output_label):
            yield Problem(first + 1, f"'{output_label}' without '{input_label}' in front of it")
        if not lines[first].startswith(input_label):
            continue
        while number < len(lines) and not lines[number].startswith((input_label, output_label)):
            number += 1
        if number == len(lines) or not lines[number].startswith(output_label):
            yield Problem(first + 1, f"'{input_label}' without '{output_label}' behind it")
            continue
        text = "\n".join(lines[first:number]).removeprefix(input_label).rstrip()
        height = text.count("\n") + 1  # without calls, the other text has as many lines
        with_calls = "\n".join(lines[number : number + height]).removeprefix(output_label).rstrip()
        yield number + 1, text, with_calls
        number += height


def _difference(without: str, text: str) -> str:
    pairs = zip(without, text, strict=False)
    same = next(
        (place for place, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(without), len(text))
    )
    shown, wanted = (printable(one[same : same + _MAX_SHOWN]) or "its end" for one in (without, text))
    return f"without its calls this is not the text above it: {shown!r} instead of {wanted!r}"


def _line(template: str, offset: int) -> int:
    return template.count("\n", 0, offset) + 1
