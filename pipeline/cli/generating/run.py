"""The command `generate`: continues prompts of the command line, a file, a pipe or a terminal.

In: `GenerateConfig` and prompts. Out: texts or JSON lines on standard output in the order of the prompts,
each as soon as it is ready; a single text on a terminal as it comes. What failed goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.generating.answer_view import AnswerView, events_of
from pipeline.cli.generating.decoding_trace import DecodingTrace, failure
from pipeline.cli.generating.interactive import InteractiveSession
from pipeline.cli.generating.line_history import LineHistory, history_file
from pipeline.cli.generating.prompts import prompts_of
from pipeline.engine.loading import load_language_model
from pipeline.inference.generation import EndEvent, Generation
from pipeline.inference.generator import Generator, available_tools
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import StreamingEngine
from pipeline.report import losses
from pipeline.syntax.partial_call import ARROW_HEAD
from tools_service.base.errors import ConfigurationError
from tools_service.base.printable import printable
from tools_service.base.standard_streams import json_must_be_ascii, standard_input
from tools_service.serving.local import start_local_tools


@dataclass(frozen=True, kw_only=True)
class Output:
    """How results are printed."""

    json: bool = False
    trace: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with its generation; with a trace if it was decoded event by event."""

    prompt: str
    generation: Generation
    trace: DecodingTrace | None = None

    @property
    def text(self) -> str:
        """The prompt and what follows it, with calls and results."""
        return self.prompt.rstrip(" ") + self.generation.annotated


def generate(
    config: GenerateConfig,
    *,
    prompts: Sequence[str] = (),
    file: Path | None = None,
    output: Output,
    interactive: bool = False,
) -> None:
    """Continue prompts. Raises ConfigurationError if some cannot be continued, after the others."""
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    is_session = _is_session(prompts, file, output, interactive=interactive, at_terminal=at_terminal)
    texts = [] if is_session else prompts_of(prompts, file)
    available = available_tools(config)
    model = load_language_model(config.model)
    tools = start_local_tools(config.tools, available)
    if is_session:
        with closing(StreamingEngine(model, tools)) as engine:
            history = LineHistory(history_file())
            InteractiveSession(engine, config, available, history, output.trace).run()
        return
    params = DecodingParams.of(config, available)
    live = at_terminal and not output.json and (len(texts) == 1 or output.trace)
    if live or output.trace:
        with closing(StreamingEngine(model, tools)) as engine:
            _print_all(_streamed(engine, texts, params, config.date, live=live), output, is_shown=live)
    else:
        generations = Generator(model, tools).generate(texts, params, [config.date] * len(texts))
        _print_all(map(Answer, texts, generations), output)


def _is_session(
    prompts: Sequence[str], file: Path | None, output: Output, *, interactive: bool, at_terminal: bool
) -> bool:
    """Whether prompts are typed one by one. Raises ConfigurationError if they cannot be."""
    has_source = bool(prompts) or file is not None
    can_type = at_terminal and not has_source and standard_input().isatty()
    if not interactive:
        return can_type and not output.json
    if has_source or output.json:
        raise ConfigurationError("--interactive takes neither prompts nor --file nor --json")
    if not can_type:
        raise ConfigurationError("--interactive needs a terminal; for a pipe, leave it out")
    return True


def _streamed(
    engine: StreamingEngine, prompts: Sequence[str], params: DecodingParams, date: str | None, *, live: bool
) -> Iterator[Answer]:
    """Decode one prompt after the other, so that the times of a trace are its own."""
    console = Console(highlight=False)
    for prompt in prompts:
        view, trace = AnswerView(console), DecodingTrace()
        if live:
            view.prompt(prompt.rstrip(" "))
        for event in engine.submit(prompt, params, date):
            trace.add(event)
            if live:
                view.add(event)
            if isinstance(event, EndEvent):
                yield Answer(prompt, event.generation, trace)


def _print_all(answers: Iterator[Answer], output: Output, *, is_shown: bool = False) -> None:
    """Print answers as they come, unless they are shown already, then what was lost.

    Raises ConfigurationError if prompts could not be continued.
    """
    generations = []
    for answer in answers:
        generations.append(answer.generation)
        if output.json:
            _print_json(answer, output)
        else:
            if not is_shown and answer.generation.refused is None:
                _print_text(answer)
            _print_failures(answer)
            if output.trace and answer.trace is not None:
                print("\n".join(answer.trace.lines(answer.prompt, answer.generation)), file=sys.stderr)
    for sentence in losses.generation_losses(generations):
        print(f"! {sentence}", file=sys.stderr)
    if refused := [generation.refused for generation in generations if generation.refused is not None]:
        count = f"{len(refused)} of {len(generations)} prompts could not be continued"
        raise ConfigurationError(f"{count}, the first because {refused[0]}")


def _print_text(answer: Answer) -> None:
    if not sys.stdout.isatty():
        print(answer.text, flush=True)
        return
    view = AnswerView(Console(highlight=False))
    view.prompt(answer.prompt.rstrip(" "))
    for event in events_of(answer.generation):
        view.add(event)


def _print_failures(answer: Answer) -> None:
    """One line for each call that failed; a terminal has them in the text."""
    if sys.stdout.isatty():
        return
    for call in answer.generation.failed:
        written = printable(call.written.removesuffix(ARROW_HEAD).rstrip(" "))
        prompt = printable(answer.prompt, 60)
        print(f"! [{written} -> failed: {failure(call.reason)}] after {prompt!r}", file=sys.stderr)


def _print_json(answer: Answer, output: Output) -> None:
    generation = answer.generation
    line: dict[str, Any] = {
        "prompt": answer.prompt,
        "text": None if generation.refused else answer.text,
        "calls": [asdict(call) for call in generation.calls],
        "failed": [asdict(call) for call in generation.failed],
        "stop_reason": generation.stop_reason,
        "tokens": generation.tokens,
        "prompt_tokens": generation.prompt_tokens,
        "sampled_tokens": generation.sampled_tokens,
    }
    if generation.refused is not None:
        line["refused"] = str(generation.refused)
    if output.trace and answer.trace is not None:
        line["trace"] = answer.trace.json()
    # A prompt that is refused may be no text in UTF-8.
    ensure_ascii = generation.refused is not None or json_must_be_ascii()
    print(json.dumps(line, ensure_ascii=ensure_ascii), flush=True)
