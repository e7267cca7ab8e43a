"""Pages of the commands: every option with its type, the default of each recipe and its help text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tyro

from pipeline.cli.commands import COMMANDS, Command
from pipeline.cli.doctor.run import SUMMARY
from pipeline.cli.recipes import RECIPES
from reference.fields import describe_type, describe_value
from reference.markdown import code, prose, table
from tools_service.base.option_fields import TOOL, Field, argument_fields, nested_fields
from tools_service.commands import Call, Index, Serve
from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import installed_tools
from tools_service.prompting import Prompt

TOOLS_COMMANDS: dict[str, Any] = {"call": Call, "index": Index, "prompt": Prompt, "serve": Serve}

# The fields of one option, by tool and recipe.
Option = dict[tuple[str | None, str], Field]


def pages() -> dict[str, str]:
    """The page of each command, by its name."""
    pages = {name: _page(name, command) for name, command in COMMANDS.items()}
    return pages | {f"tools-{name}": _tools_page(name) for name in TOOLS_COMMANDS}


def index() -> str:
    """The list of all commands."""
    rows = [
        (f"[`{name}`](commands/{name}.md)", prose(command.run.__doc__)) for name, command in COMMANDS.items()
    ]
    rows.append(("[`doctor`](../doctor.md)", prose(SUMMARY)))
    tools = [
        (f"[`{name}`](commands/tools-{name}.md)", prose((cls.__doc__ or "").partition("\n\n")[0]))
        for name, cls in TOOLS_COMMANDS.items()
    ]
    return (
        "# Commands\n\n"
        "`toolformer COMMAND`, or `python -m pipeline COMMAND` in a checkout:\n\n"
        f"{table(('command', 'what it does'), rows)}\n"
        "`toolformer-tools COMMAND`, or `python -m tools_service COMMAND`: the tools by hand.\n\n"
        f"{table(('command', 'what it does'), tools)}\n"
        f"{_HOW_TO_READ}"
    )


_HOW_TO_READ = f"""`toolformer doctor` checks the machine ([checks](../doctor.md)); it has the options
`--json` and `--network`. `toolformer --version` prints the version.

## Options of every command of `toolformer`

| option | meaning |
| --- | --- |
| `--help`, `--help-all` | the main options; all options |
| `--recipe` | the defaults to start from |
| `--config` | a [run file](../run_file.md) with the settings, over the recipe and under options |
| `--print-config` | print the settings as a run file, and do nothing else |
| `--dry-run` | say what would be read, run and written, and what is missing; do nothing else |

## How to read the tables of options

- An option has the name of its field in the [configuration](configuration.md): `corpus.max_tokens` is
  `--corpus.max-tokens`.
- `{TOOL}` stands for the name of a tool in small letters: `--method.{TOOL}.tau-s` is
  `--method.calculator.tau-s` for the calculator. A tool of your own has these options, too, with
  `--tools-file`.
- *yes or no*: `--NAME` for yes, `--NAME.no-…` for no, as in `--corpus.no-skip-call-syntax`; without dots
  `--no-NAME`.
- *several*: values follow one another, `--tools QA MT`. *pairs*: `--tau-f Calculator 1.0 MT 0.5`.
- A default that depends on the recipe stands once for each recipe. A dash: none.
"""


def _page(name: str, command: Command) -> str:
    options: dict[str, Option] = {}
    for recipe, make in RECIPES.items():
        arguments = command.arguments(recipe=recipe, config=command.config(make()))
        _add(options, recipe, argument_fields(arguments))
    options.pop("--recipe")
    parts = [f"# {name}\n", f"{prose(command.run.__doc__)}\n"]
    parts.append("".join(f"    toolformer {name} {example}\n" for example in command.examples))
    if command.short:
        short = ", ".join(f"`{short}` for `{long}`" for short, long in command.short.items())
        parts.append(f"Short forms: {short}.\n")
    parts.append(
        f"`--recipe` {' '.join(code(recipe) for recipe in RECIPES)} chooses the defaults. "
        "[How to read the tables](../commands.md#how-to-read-the-tables-of-options)\n"
    )
    return "\n".join([*parts, *_tables(options)])


def _tools_page(name: str) -> str:
    cls = TOOLS_COMMANDS[name]
    config = WikiSearchConfig() if cls is Index else ToolsConfig().at_inference()
    required = {"tool": tyro.MISSING} if cls in (Call, Prompt) else {}
    options: dict[str, Option] = {}
    _add(options, "", argument_fields(cls(config=config, **required)))
    summary = prose((cls.__doc__ or "").partition("\n\n")[0])
    return "\n".join([f"# toolformer-tools {name}\n", f"{summary}\n", *_tables(options)])


def _add(options: dict[str, Option], recipe: str, fields: Iterable[Field]) -> None:
    for field in nested_fields(fields):
        if field.is_option:
            name = field.pattern.upper() if field.is_positional else f"--{field.pattern.replace('_', '-')}"
            options.setdefault(name, {})[field.tool, recipe] = field


def _tables(options: Mapping[str, Option]) -> Iterator[str]:
    """A table for each group of options: those without a dot, then by what stands before the last dot."""
    groups: dict[str, list[str]] = {"": []}
    for name in options:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    for group, names in groups.items():
        yield f"## {group}.…\n" if group else "## Options\n"
        yield table(("option", "type", "default", "meaning"), (_row(name, options[name]) for name in names))


def _row(name: str, option: Option) -> tuple[str, str, str, str]:
    first = next(iter(option.values()))
    tools = list(dict.fromkeys(tool for tool, _ in option))
    installed = {spec.section for spec in installed_tools().values()}
    only = f" ({', '.join(map(str, tools))})" if first.tool and set(tools) != installed else ""
    return code(name) + only, describe_type(first.type), _default(option), prose(first.help)


def _default(option: Option) -> str:
    """The default; with its exceptions for tools, and for each recipe where they differ."""
    by_recipe: dict[str, str] = {}
    for recipe in dict.fromkeys(recipe for _, recipe in option):
        values = {tool: describe_value(field.value) for (tool, r), field in option.items() if r == recipe}
        (common, _), *_ = Counter(values.values()).most_common(1)
        others: dict[str, list[str]] = {}
        for tool, value in values.items():
            if value != common:
                others.setdefault(value, []).append(str(tool))
        exceptions = [f"{', '.join(tools)}: {value}" for value, tools in others.items()]
        by_recipe[recipe] = "; ".join([common, *exceptions])
    if len(set(by_recipe.values())) == 1:
        return next(iter(by_recipe.values()))
    return "<br>".join(f"{recipe}: {text}" for recipe, text in by_recipe.items())
