"""`toolformer-tools prompt`: drafts a tool's annotation prompt from examples, or checks a prompt file.

In: a declared tool, and examples (texts with a call in them) or a prompt file. The tool is created and asked
in this process. Out: a prompt file (syntax/drafting.py), its length in tokens, and a line for everything that
is wrong with an example or a demonstration. No file is overwritten.
"""

from __future__ import annotations

import datetime
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

import tyro

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import writing
from tools_service.base.lines import Line, read_lines
from tools_service.base.settings import FilePath, PositiveInt, Text
from tools_service.base.standard_streams import standard_input
from tools_service.config import ToolsConfig
from tools_service.contract.arguments import CallArguments
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import Tool, ToolInput
from tools_service.syntax.answers import answer_problems
from tools_service.syntax.demonstrations import Demonstration, Problem, read_examples
from tools_service.syntax.drafting import ToolDescription, draft_prompt
from tools_service.syntax.prompts import PromptError, demonstrations, prompt_problems, read_prompt_file
from tools_service.tools.client import LocalTools
from tools_service.tools.registry import load_tool, prepare_tools, require_available

MAX_EXAMPLES = 1_000
_MAX_LINE_BYTES = 2**20
_CHUNK_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Draft the annotation prompt of a tool from examples, or check a prompt file."""

    tool: tyro.conf.Positional[str]
    """The tool."""
    source: Annotated[str | None, tyro.conf.arg(name="from", metavar="PATH")] = None
    """Examples, a line each: a text with a call in front of its result, or JSON with text and date.
    None reads standard input."""
    examples: PositiveInt = 4
    """Examples that the prompt shows, the first that are right."""
    output: FilePath | None = None
    """File for the prompt; it must not exist yet. None prints the prompt."""
    check: FilePath | None = None
    """Draft nothing, check this prompt file."""
    model: Text | None = None
    """Folder or hub name of the model whose tokens are counted."""
    tools_file: FilePath | None = None
    """TOML file with the configuration of the tools."""
    config: Annotated[ToolsConfig, tyro.conf.arg(name="")]


def prompt(arguments: Prompt) -> int:
    """Draft or check a prompt; return the exit code: 0 if it can be used, else 1."""
    if arguments.check and (arguments.source is not None or arguments.output):
        raise ConfigurationError("--check: a prompt file is only checked; leave --from and --output out")
    if arguments.output is not None:
        _require_new(arguments.output)
    require_available([arguments.tool], arguments.config, field="TOOL", can_be_left_out=False)
    prompter = _Prompter(arguments)
    return prompter.check(arguments.check) if arguments.check else prompter.draft()


class _Prompter:
    """The command's tool, ready to answer, and the tokenizer, if a model is named."""

    def __init__(self, arguments: Prompt) -> None:
        self._arguments = arguments
        self._name, config = arguments.tool, arguments.config
        self._spec, self._declared = config.spec(self._name), list(config.specs)
        self._tokenizer = None
        if arguments.model is not None:
            from tools_service.base.checkpoints import (
                load_tokenizer,
            )  # imports transformers, which takes seconds

            self._tokenizer = load_tokenizer(arguments.model, "--model")
        prepare_tools(config, [self._name])
        self._tool = load_tool(self._name, config)
        self._client = LocalTools({self._name: self._tool}, config)

    def check(self, file: Path) -> int:
        """Check a prompt file; the problems go to standard output."""
        try:
            template = read_prompt_file(file, self._name)
        except PromptError as error:
            if not isinstance(error.__cause__, UnicodeDecodeError):
                raise
            print(error)
            return 1
        problems = prompt_problems(template, self._name, self._declared, self._spec.takes_input)
        shown = demonstrations(template, self._name)
        for demonstration in shown:
            problems += self._answer_problems(demonstration)
        _report(file, sorted(problems, key=lambda problem: problem.line), sys.stdout)
        print(f"{file}: {self._size(template, len(shown))}")
        return int(not all(problem.is_note for problem in problems))

    def draft(self) -> int:
        """Draft a prompt. What is wrong with the examples goes to standard error."""
        source = self._arguments.source or "standard input"
        usable: list[Demonstration] = []
        for example in read_examples(self._lines(), self._name, self._spec.takes_input, self._declared):
            problems = [example] if isinstance(example, Problem) else self._answer_problems(example)
            _report(source, problems, sys.stderr)
            if isinstance(example, Demonstration) and all(problem.is_note for problem in problems):
                usable.append(example)
        if not usable:
            print(f"{source}: no example can be used, so there is no prompt", file=sys.stderr)
            return 1
        shown = usable[: self._arguments.examples]
        template = draft_prompt(_describe(self._spec, self._tool), shown)
        if problems := prompt_problems(template.rstrip(), self._name, self._declared, self._spec.takes_input):
            _report("the draft", problems, sys.stderr)
            return 1
        self._write(template)
        print(
            f"{self._arguments.output or 'the prompt'}: {self._size(template, len(shown))}", file=sys.stderr
        )
        return 0

    def _answer_problems(self, demonstration: Demonstration) -> list[Problem]:
        dated = not self._spec.dated or demonstration.date is not None
        date = demonstration.date if dated else datetime.date.today().isoformat()
        inputs = [ToolInput(call.input, date) for call in demonstration.calls]
        answers = self._client.call(self._name, inputs)
        return list(answer_problems(demonstration, self._name, answers, in_text=dated))

    def _lines(self) -> list[Line]:
        """The lines with examples. ConfigurationError if there are none, or more than a person writes."""
        with ExitStack() as stack:
            if (source := self._arguments.source) is None:
                if sys.stdin is not None and sys.stdin.isatty():
                    print(
                        f"Write texts with [{self._name}(…)] in them, a line each; end with Ctrl-D.",
                        file=sys.stderr,
                    )
                lines = _read(standard_input())
            else:
                try:
                    lines = _read(stack.enter_context(Path(source).open("rb")))
                except (OSError, ValueError) as error:
                    raise ConfigurationError(f"--from {source!r}: cannot read it: {error}") from error
            written = list(
                islice((line for line in lines if line.problem or line.text.strip()), MAX_EXAMPLES + 1)
            )
        if len(written) > MAX_EXAMPLES:
            raise ConfigurationError(
                f"--from: more than {MAX_EXAMPLES:,} lines; write the examples to a file of theirs"
            )
        if not written:
            raise ConfigurationError(
                f"--from: there are no examples; write texts with [{self._name}(…)], a line each"
            )
        return written

    def _write(self, template: str) -> None:
        output = self._arguments.output
        if output is None:
            print(template, end="")
            return
        _require_new(output)
        with writing(output), output.open("x", encoding="utf-8") as file:
            file.write(template)

    def _size(self, template: str, shown: int) -> str:
        demonstrations_shown = f"{shown} demonstration{'' if shown == 1 else 's'}"
        if self._tokenizer is None:
            return f"{demonstrations_shown} (--model counts the tokens)"
        tokens = self._tokenizer(template.rstrip().replace("{text}", ""), add_special_tokens=False).input_ids
        return f"{demonstrations_shown}, {len(tokens):,} tokens of {self._arguments.model}"


def _describe(spec: ToolSpec, tool: Tool) -> ToolDescription:
    """What the declaration says of a tool, or else the tool itself or its class."""
    own = getattr(tool, "description", None)
    if not isinstance(own, str):
        own = (inspect.getdoc(type(tool)) or "").partition("\n\n")[0]
    arguments = getattr(tool, "arguments", None)
    arguments = arguments if isinstance(arguments, CallArguments) else None
    return ToolDescription(spec.name, spec.description or own, arguments, spec.takes_input)


def _read(file: BinaryIO) -> Iterator[Line]:
    return read_lines(iter(lambda: file.read(_CHUNK_BYTES), b""), "", _MAX_LINE_BYTES)


def _report(source: str | Path, problems: Sequence[Problem], stream: TextIO) -> None:
    for problem in problems:
        print(f"{source}: {problem}", file=stream)


def _require_new(output: Path) -> None:
    try:
        there, folder = output.exists() or output.is_symlink(), output.parent.is_dir()
    except OSError as error:
        raise ConfigurationError(f"--output {output}: {error.strerror}; name another file") from error
    if there:
        raise ConfigurationError(f"--output {output}: is there already; name another file, or remove it")
    if not folder:
        raise ConfigurationError(f"--output {output}: there is no folder {output.parent}; make it first")
