"""`completion SHELL`: a script that completes commands, options and their choices in a shell.

In: the options of all commands. Out: the script, on standard output; docs/command_line.md says where it goes.
It is made from the same fields as the help, so that it has every option of the installed version.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal, get_args, get_origin

from tools_service.base.option_fields import Field, option_of, plain_type

SUMMARY = "Print a script that completes commands and options: bash, zsh or fish."
SHELLS = ("bash", "zsh", "fish")

Words = Mapping[str, Sequence[Field]]


def print_completion(argv: Sequence[str], program: str, words: Words) -> int:
    """Print the script of the shell that `argv` names; return the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {program} {{{','.join(SHELLS)}}}\n\n{SUMMARY}\n\nIn ~/.bashrc:")
        print("  source <(toolformer completion bash)")
        return 0
    if len(argv) != 1 or argv[0] not in SHELLS:
        given = f"no shell is called {argv[0]!r}" if argv else "name a shell"
        print(f"{program}: {given}; there are {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    print(_fish(words) if argv[0] == "fish" else _bash(words, is_zsh=argv[0] == "zsh"))
    return 0


def _choices(field: Field) -> tuple[str, ...]:
    kind = plain_type(field.type)[0]
    if get_origin(kind) is tuple:
        kind = plain_type(get_args(kind)[0])[0]
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()


def _options(fields: Sequence[Field]) -> dict[str, Field]:
    """The options by name."""
    options = {option_of(field): field for field in fields if field.is_option and not field.is_positional}
    return dict(sorted(options.items()))


def _bash(words: Words, *, is_zsh: bool) -> str:
    lines = ["autoload -U +X bashcompinit && bashcompinit"] if is_zsh else []
    lines += [
        "_toolformer() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"))',
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]} $before" in',
    ]
    for command, fields in words.items():
        for option, field in _options(fields).items():
            if choices := _choices(field):
                lines.append(f'    "{command} {option}") words="{" ".join(choices)}" ;;')
    lines += ["  esac", '  if [ -z "$words" ]; then', '    case "${COMP_WORDS[1]}" in']
    for command, fields in words.items():
        others = SHELLS if command == "completion" else ("--help", "--help-all")
        lines.append(f'      {command}) words="{" ".join((*_options(fields), *others))}" ;;')
    lines += [
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _toolformer toolformer",
    ]
    return "\n".join(lines)


def _fish(words: Words) -> str:
    lines = [f'complete -c toolformer -n __fish_use_subcommand -f -a "{" ".join(words)}"']
    lines += [
        f'complete -c toolformer -n "__fish_seen_subcommand_from completion" -f -a "{" ".join(SHELLS)}"'
    ]
    for command, fields in words.items():
        for option, field in _options(fields).items():
            choices = f' -x -a "{" ".join(_choices(field))}"' if _choices(field) else ""
            seen = f'-n "__fish_seen_subcommand_from {command}"'
            lines.append(f"complete -c toolformer {seen} -l {option.removeprefix('--')}{choices}")
    return "\n".join(lines)
