"""`generate` without prompts on a terminal: a prompt loop with line editing, history and a few commands.

In: lines of the terminal. Out: their continuations, as they come. Ctrl-C ends the current answer, Ctrl-D
the loop. `/NAME VALUE` sets the decoding option --NAME; every prompt is continued by itself.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from rich.console import Console

from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.generating.answer_view import AnswerView
from pipeline.cli.generating.decoding_trace import STOPS, DecodingTrace
from pipeline.cli.generating.line_history import LineHistory
from pipeline.cli.generating.prompts import unescape
from pipeline.inference.generation import EndEvent, Generation
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import StreamingEngine
from tools_service.base.errors import ConfigurationError, describe_problem

SETTINGS = (
    *("k", "disabled", "tools_off", "date", "max_new_tokens", "max_calls", "max_failed_calls"),
    *("chained_calls", "stop", "temperature", "top_p", "seed"),
)
_PROMPT = "> "
_HINT = "Type a prompt to continue. /help lists the commands; Ctrl-C ends an answer, Ctrl-D leaves."


@dataclass
class InteractiveSession:
    """Continues the prompts of a terminal with the tools in `available`."""

    engine: StreamingEngine
    config: GenerateConfig
    available: Sequence[str]
    history: LineHistory
    with_trace: bool = False

    def __post_init__(self) -> None:
        self._at_start = self.config
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Read lines until Ctrl-D. Raises InferenceError if decoding cannot go on."""
        print(_HINT)
        while True:
            try:
                line = self.history.read(_PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
            except UnicodeDecodeError as error:
                print(f"! this line is not text in UTF-8: {error}")
            else:
                if line.startswith("/"):
                    print(self._obey(line))
                elif line.strip():
                    self._answer(line)

    def _answer(self, prompt: str) -> None:
        tools = [tool for tool in self.available if tool not in self.config.tools_off]
        params = DecodingParams.of(self.config, tools)
        view, trace = AnswerView(self._console), DecodingTrace()
        stream = self.engine.submit(prompt, params, self.config.date)
        try:
            for event in stream:
                trace.add(event)
                view.add(event)
                if isinstance(event, EndEvent):
                    self._conclude(prompt, event.generation, trace)
        except KeyboardInterrupt:
            # What the stream still brings is not waited for: a tool may take its time.
            stream.cancel()
            view.end()
            print("[interrupted]")

    def _conclude(self, prompt: str, generation: Generation, trace: DecodingTrace) -> None:
        if generation.refused is not None:
            print(f"! {generation.refused}")
        elif generation.stop_reason not in ("eos", "stop"):
            print(f"[ended by: {STOPS[generation.stop_reason]}]")
        if self.with_trace:
            print("\n".join(trace.lines(prompt, generation)), file=sys.stderr)

    def _obey(self, line: str) -> str:
        """Carry out a command; what to print."""
        word, _, rest = line[1:].strip().partition(" ")
        name = word.replace("-", "_")
        if name == "help":
            return _help()
        if name == "settings":
            return "\n".join(f"{_option(name)} {self._shown(name)}" for name in SETTINGS)
        if name not in SETTINGS:
            return f"! no command /{word}; /help lists them"
        try:
            self.config = self._changed(name, rest.strip())
        except (ConfigurationError, ValueError) as error:
            return f"! {error}"
        return f"{_option(name)} {self._shown(name)}"

    def _changed(self, name: str, given: str) -> GenerateConfig:
        """The configuration with one field changed, or as it was at the start if nothing is `given`.

        Raises ConfigurationError or ValueError for a wrong value.
        """
        value: object = given
        if not given:
            value = getattr(self._at_start, name)
        elif name == "stop":
            value = [unescape(text) for text in _words(given)]
        elif name == "tools_off":
            value = [] if given == "none" else _words(given)
        try:
            changed = GenerateConfig.model_validate(self.config.model_dump(warnings=False) | {name: value})
        except ValidationError as error:
            problems = error.errors(include_url=False)
            message = "; ".join(describe_problem(problem, _option(name)) for problem in problems)
            raise ConfigurationError(message.replace(f" {name}:", "", 1)) from error
        if missing := set(self._at_start.tools_off) - set(changed.tools_off):
            names = " ".join(sorted(missing))
            raise ConfigurationError(
                f"{names}: off since the start, so not running; leave with Ctrl-D and "
                f"start again without --tools-off {names}"
            )
        return changed

    def _shown(self, name: str) -> str:
        value = getattr(self.config, name)
        if name == "date":
            return value or "today"
        if isinstance(value, tuple):
            return " ".join(repr(text) if name == "stop" else text for text in value) or "none"
        return str(value)


def _option(name: str) -> str:
    return "/" + name.replace("_", "-")


def _words(text: str) -> list[str]:
    """The words of `text`; quotes keep spaces, a backslash is itself. Raises ValueError for an open quote."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    return list(lexer)


def _help() -> str:
    fields = GenerateConfig.model_fields
    lines = ["/settings  show the settings", "/NAME VALUE  change one; /NAME alone sets it back:"]
    for name in SETTINGS:
        description = " ".join((fields[name].description or "").split())
        lines.append(f"  {_option(name)}  {description}")
    return "\n".join([*lines, "Ctrl-C ends an answer, Ctrl-D leaves."])
