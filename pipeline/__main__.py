"""python -m pipeline COMMAND: the method on the command line (tyro over the models of config.py).

A command starts from a recipe (`--recipe`), and every field of its configuration is an option called by its
name, dots for nesting. Steps are imported when they run, so that `--help` needs neither torch nor Ray.
Results go to standard output, progress and logs to standard error.

Exit codes: 0 done; 1 the run failed; 2 the command line, the configuration or an input it names is wrong;
130 interrupted. Errors of the project's own types are one message without a traceback; anything else is a
bug and shows one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from pipeline.config import (
    AnnotateConfig,
    EvaluateConfig,
    FinetuneConfig,
    Frozen,
    GenerateConfig,
    MergeConfig,
)
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.recipes import RECIPES, Recipe, RecipeName
from pipeline.records import TOOL_NAMES, ToolName

C = TypeVar("C", bound=Frozen)
DEFAULT_RECIPE: RecipeName = "demo"
PROMPTS_AT_ONCE = 64
OUR_PACKAGES = ("pipeline", "tools_service")

logger = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class Arguments(Generic[C]):
    """What every command takes."""

    recipe: RecipeName = DEFAULT_RECIPE
    """The values to start from; the defaults shown here are this recipe's."""
    config: Annotated[C, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(Arguments[GenerateConfig]):
    """Arguments, and the prompts."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to continue; none: one a line from --file or standard input."""
    file: Path | None = None
    """File with one prompt a line."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object a line: prompt, text (with calls), calls."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Arguments[EvaluateConfig]):
    """Arguments, and the model's name in the result."""

    label: str = "model"
    """What the model is called in the result file: models.LABEL."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments(Arguments[Recipe]):
    """Arguments, and whether to start over."""

    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do finished steps again."""


def annotate(arguments: Arguments[AnnotateConfig]) -> None:
    """Steps 1-4: select texts, sample calls, execute them, score them."""
    from pipeline import annotation

    annotation.annotate(arguments.config)


def merge(arguments: Arguments[MergeConfig]) -> None:
    """Step 5: keep calls by threshold, cap per tool, insert them: C*."""
    from pipeline import augmentation

    augmentation.merge(arguments.config)


def finetune(arguments: Arguments[FinetuneConfig]) -> None:
    """Step 6: language modelling on C*, with Ray Train and DeepSpeed."""
    from pipeline import finetuning

    finetuning.finetune(arguments.config)


def generate(arguments: GenerateArguments) -> None:
    """Continue each prompt and print it, with the calls where they were made."""
    from pipeline.inference import Generator
    from pipeline.model import LanguageModel
    from tools_service.client import LocalTools

    prompts, config = prompts_of(arguments), arguments.config
    tools = _tools_at_hand(config)
    generator = Generator(
        LanguageModel.load(config.model),
        LocalTools.start(config.tools, tools),
        k=config.k,
        disabled=config.disabled,
        tools_off=set(TOOL_NAMES).difference(tools),
    )
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        batch = prompts[start : start + PROMPTS_AT_ONCE]
        dates = [config.date] * len(batch)
        for prompt, made in zip(
            batch, generator.generate(batch, dates, max_new_tokens=config.max_new_tokens), strict=True
        ):
            text = prompt.rstrip(" ") + made.annotated
            line = {"prompt": prompt, "text": text, "calls": [asdict(call) for call in made.calls]}
            print(json.dumps(line, ensure_ascii=False) if arguments.json else text, flush=True)


def evaluate(arguments: EvaluateArguments) -> None:
    """Step 8: accuracy on question files, and perplexity with calls disabled."""
    raise NotImplementedError


def demo(arguments: DemoArguments) -> None:
    """All steps in a row, with the baselines, and the result in one table."""
    from pipeline.demo import demo

    demo(arguments.config, force=arguments.force)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: the type of its arguments, the part of a recipe it starts from, what its help shows."""

    summary: str
    run: Callable[[Any], None]
    arguments: type[Arguments[Any]]
    config: Callable[[Recipe], Frozen]
    short: dict[str, str] = field(default_factory=dict)
    examples: tuple[str, ...]


COMMANDS: dict[str, Command] = {
    "annotate": Command(
        summary="Steps 1-4: select texts, sample calls, execute them, score them.",
        run=annotate,
        arguments=Arguments[AnnotateConfig],
        config=lambda recipe: recipe.annotate,
        short={"--corpus": "--corpus.paths", "--model": "--model.path", "--tools": "--method.tools"},
        examples=(
            "--recipe demo",
            "--recipe single_gpu --corpus shards/ 'more/*.json.gz' --tools.encyclopedia wiki/",
            "--recipe paper --corpus s3://bucket/ccnet --model /models/gpt-j --method.calculator.k 5",
        ),
    ),
    "merge": Command(
        summary="Step 5: keep calls by threshold, cap per tool, insert them: C*.",
        run=merge,
        arguments=Arguments[MergeConfig],
        config=lambda recipe: recipe.merge,
        examples=(
            "--recipe demo",
            "--annotations runs/a runs/b --output runs/augmented --tau-f Calculator 1.0",
        ),
    ),
    "finetune": Command(
        summary="Step 6: language modelling on C*, with Ray Train and DeepSpeed.",
        run=finetune,
        arguments=Arguments[FinetuneConfig],
        config=lambda recipe: recipe.finetune,
        short={"--model": "--model.path"},
        examples=("--recipe demo", "--recipe demo --column plain --output runs/demo/model-plain"),
    ),
    "generate": Command(
        summary="Step 7: continue prompts, calling tools on the way.",
        run=generate,
        arguments=GenerateArguments,
        config=lambda recipe: recipe.generate,
        short={"--model": "--model.path"},
        examples=(
            "--recipe demo 'A prompt to continue'",
            "--model runs/model --file prompts.txt --json",
            "--recipe demo --disabled 'The same without calls'",
        ),
    ),
    "evaluate": Command(
        summary="Step 8: accuracy on question files, and perplexity with calls disabled.",
        run=evaluate,
        arguments=EvaluateArguments,
        config=lambda recipe: recipe.evaluate,
        short={"--model": "--generation.model.path"},
        examples=("--recipe demo --label toolformer", "--model runs/model --benchmarks questions/*.jsonl"),
    ),
    "demo": Command(
        summary="All steps in a row, with the baselines, and the result in one table.",
        run=demo,
        arguments=DemoArguments,
        config=lambda recipe: recipe,
        examples=("", "--force", "--annotate.method.calculator.k 5"),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"python -m pipeline: unknown command {argv[0]!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    command = COMMANDS[argv[0]]
    arguments = parse(argv[0], argv[1:])
    _log()
    try:
        command.run(arguments)
    except PipelineError as error:
        print(f"python -m pipeline {argv[0]}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def parse(name: str, argv: Sequence[str]) -> Arguments[Any]:
    """The typed arguments of command `name`; a wrong command line exits with code 2 and a message."""
    command = COMMANDS[name]
    argv = [_expand(argument, command.short) for argument in argv]
    recipe = _recipe_of(argv)
    default = command.arguments(recipe=recipe, config=command.config(RECIPES[recipe]()))
    return tyro.cli(
        command.arguments,
        prog=f"python -m pipeline {name}",
        description=_describe(name),
        args=argv,
        default=default,
    )


def _recipe_of(argv: Sequence[str]) -> RecipeName:
    """The recipe named in `argv`. An unknown name gives the default here: the full parser then refuses it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    name = parser.parse_known_args(argv)[0].recipe
    return name if name in RECIPES else DEFAULT_RECIPE


def _expand(argument: str, short: dict[str, str]) -> str:
    """A short form becomes the full name of its field: --corpus=x → --corpus.paths=x."""
    option, equals, value = argument.partition("=")
    return short.get(option, option) + equals + value


def _describe(name: str) -> str:
    command = COMMANDS[name]
    lines = [command.summary, "", "Examples:"]
    lines += [f"  python -m pipeline {name} {example}".rstrip() for example in command.examples]
    if command.short:
        lines += ["", "Short forms: " + ", ".join(f"{a} for {b}" for a, b in command.short.items())]
    return "\n".join(lines)


def _log() -> None:
    """Ours from INFO on, other packages' from WARNING on, whatever levels these set themselves."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in OUR_PACKAGES
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [--recipe {" + ",".join(RECIPES) + "}] [OPTIONS]",
            "",
            "Language models that teach themselves to use tools (Toolformer, arXiv 2302.04761) on Ray.",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "Start with `python -m pipeline demo`; `python -m pipeline COMMAND --help` lists every option.",
            "Exit codes: 0 done, 1 the run failed, 2 wrong command line or configuration, 130 interrupted.",
        ]
    )


def prompts_of(arguments: GenerateArguments) -> list[str]:
    """The prompts given as arguments, else the lines of --file, else those of standard input."""
    if arguments.prompts and arguments.file:
        raise ConfigurationError("give prompts as arguments or with --file, not both")
    if arguments.prompts:
        return list(arguments.prompts)
    if arguments.file is None:
        if sys.stdin.isatty():
            print("prompts, one a line; end with Ctrl-D:", file=sys.stderr)
        lines = sys.stdin.read().splitlines()
    else:
        try:
            lines = arguments.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--file {arguments.file}: {error}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigurationError(f"no prompt in {arguments.file or 'standard input'}")
    return prompts


def _tools_at_hand(config: GenerateConfig) -> tuple[ToolName, ...]:
    """The tools that are not switched off and can be had; a model may have learned fewer than there are."""
    from tools_service.toolbox import AVAILABLE, ToolUnavailableError, require_available

    tools = []
    for tool in AVAILABLE:
        try:
            require_available([tool], config.tools, field="tools_off")
        except ToolUnavailableError as error:
            logger.warning("%s is switched off: %s", tool, error)
        else:
            tools += [tool] * (tool not in config.tools_off)
    return tuple(tools)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
