"""One file for a whole run, `--config run.yaml`: values between the recipe and the options.

    recipe: single_gpu
    corpus: pages/                 # said once, for all steps
    output: runs/mine
    finetune: {max_steps: 500}     # the fields of one command

In: the file, and a command. Out: the command's configuration, and the same written as such a file
(`--print-config`). A later value wins: recipe, tools file, names for all steps, a step's section, options.
docs/run_file.md has the whole form.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from pipeline.base.config import CorpusConfig, ModelConfig
from pipeline.cli.recipes import RECIPES, Recipe, RecipeName, Rounds, linked, written_below
from pipeline.cli.settings_file import Keys, SettingsFile, SettingsFileError
from tools_service.base.errors import describe_problem
from tools_service.base.settings import FilePath, Frozen, NotAnOption
from tools_service.tools_file import with_tools_file

C = TypeVar("C", bound=Frozen)

_STEPS = tuple(Recipe.model_fields)
# The configurations in which a name for all steps stands, by step. What is not said of `model` for
# `generate` is which model, and how much fits a forward pass: it decodes with the fine-tuned one.
_FOR_ALL: dict[str, tuple[str, ...]] = {
    "model": ("annotate", "finetune", "generate"),
    "corpus": ("annotate",),
    "tools": ("annotate", "generate"),
}
_NOT_OF_GENERATE = ("path", "max_batch_tokens")
_TOP = ("recipe", "tools_file", "output", "rounds", "round_prompts", *_FOR_ALL)
# Options that belong to a command, not to its configuration, and that decide its result.
_OPTIONS = ("label", "models", "k", "disabled", "given_name")


class RunFile:
    """The file of `--config`, or nothing: then every configuration is the recipe's."""

    def __init__(self, file: SettingsFile, commands: Mapping[str, type[Any]]) -> None:
        """`commands` are the types of their arguments by name; all but `demo`, which is all steps, have a
        section. Raises SettingsFileError for a wrong name or value."""
        self._file = file
        self._options = {name: _options_of(kind) for name, kind in commands.items() if name != "demo"}
        for name, value in file.values.items():
            if name not in (*_TOP, *self._options):
                raise self._unknown((name,), "section and no setting for all steps", (*_TOP, *self._options))
            if name in self._options and not isinstance(value, Mapping | None):
                raise file.error((name,), f"{name}: write the fields of {name} below it, NAME: VALUE")
        self.recipe: RecipeName | None = self._value("recipe", RecipeName)
        self.tools_file: Path | None = self._value("tools_file", FilePath)
        self.output: Path | None = self._value("output", FilePath)
        rounds = {
            "rounds": self._value("rounds", Rounds),
            "round_prompts": self._value("round_prompts", bool),
        }
        self._rounds = {name: value for name, value in rounds.items() if value is not None}

    @staticmethod
    def of(argv: Sequence[str], commands: Mapping[str, type[Any]]) -> RunFile:
        """The file that `--config` in `argv` names. Raises SettingsFileError."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--config", nargs="?")
        path: str | None = parser.parse_known_args(argv)[0].config
        if path is None:
            return RunFile(SettingsFile(Path(), {}), commands)
        if not path.strip():
            raise SettingsFileError("--config: must not be empty; name a YAML or TOML file")
        return RunFile(SettingsFile.read(Path(path)), commands)

    def configuration(
        self, command: str, part: Callable[[Recipe], Frozen], recipe: RecipeName, tools_file: Path | None
    ) -> Frozen:
        """The configuration of `command`, which is a `part` of the recipe. Raises ConfigurationError."""
        run = RECIPES[recipe]().model_copy(update=self._rounds)
        if self.output is not None:
            run = written_below(run, self.output)
        run = with_tools_file(run, tools_file)
        run = linked(self._with_names_for_all(run), self._changed)
        config = part(run)
        return config if command in _STEPS else self._changed(command, config)

    def options(self, command: str) -> dict[str, Any]:
        """The options in the section of `command` that are not of its configuration."""
        section = self._file.values.get(command) or {}
        return {
            name: self._validated(annotation, section[name], (command, name))
            for name, annotation in self._options.get(command, {}).items()
            if name in section
        }

    def gives_output(self, command: str) -> bool:
        """Whether the file says where `command` writes."""
        return self.output is not None or "output" in (self._file.values.get(command) or {})

    def _value(self, name: str, annotation: Any) -> Any:
        value = self._file.values.get(name)
        return None if value is None else self._validated(annotation, value, (name,))

    def _validated(self, annotation: Any, value: Any, keys: Keys) -> Any:
        try:
            return TypeAdapter(annotation).validate_python(value)
        except ValidationError as error:
            raise self._wrong(error, keys) from error

    def _with_names_for_all(self, run: Recipe) -> Recipe:
        for name, steps in _FOR_ALL.items():
            value = self._file.values.get(name)
            for step in steps if value is not None else ():
                config = getattr(run, step)
                inner = getattr(config, name)
                given = _expanded(inner, value)
                if step == "generate" and name == "model" and isinstance(given, Mapping):
                    given = {key: item for key, item in given.items() if key not in _NOT_OF_GENERATE}
                config = config.model_copy(update={name: self._overlaid(inner, given, (name,))})
                run = run.model_copy(update={step: config})
        return run

    def _changed(self, section: str, config: C) -> C:
        """`config` with the values of its section."""
        values = self._file.values.get(section) or {}
        values = {name: value for name, value in values.items() if name not in self._options[section]}
        return self._overlaid(config, values, (section,)) if values else config

    def _overlaid(self, config: C, values: Any, keys: Keys) -> C:
        """`config` with `values`, which stand at `keys`. Raises SettingsFileError, which names the field."""
        if not isinstance(values, Mapping):
            raise self._file.error(keys, f"{_dotted(keys)}: write fields below it, NAME: VALUE")
        merged = self._merged(config, values, keys)
        try:
            return type(config).model_validate(merged)
        except ValidationError as error:
            raise self._wrong(error, keys) from error

    def _merged(self, config: Frozen, values: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
        merged = config.model_dump()
        known = [name for name, _ in config if not _is_hidden(config, name)]
        for name, value in values.items():
            if name not in known:
                raise self._unknown((*keys, name), "field", known)
            inner = getattr(config, name)
            given = _expanded(inner, value)
            is_section = isinstance(inner, Frozen) and isinstance(given, Mapping)
            merged[name] = self._merged(inner, given, (*keys, name)) if is_section else given
        return merged

    def _unknown(self, keys: Keys, kind: str, known: Sequence[str]) -> SettingsFileError:
        similar = difflib.get_close_matches(str(keys[-1]).replace("-", "_"), known, n=1)
        there_are = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
        return self._file.error(keys, f"{_dotted(keys)}: there is no such {kind}; {there_are}")

    def _wrong(self, error: ValidationError, keys: Keys) -> SettingsFileError:
        problem = error.errors(include_url=False)[0]
        place = (*keys, *problem["loc"])
        names = tuple(part for part in place if isinstance(part, str))
        said = describe_problem(problem, _dotted(names)).replace("must be a list", "must be a list, [A, B]")
        return self._file.error(
            place, said.replace("must be pairs of a name and a value", "must be a mapping, NAME: VALUE")
        )


def written_as_file(command: str, arguments: Any) -> str:
    """The configuration of a command as a run file in YAML, from which `--config` makes the same again."""
    values: dict[str, Any] = {"recipe": arguments.recipe}
    if (tools_file := getattr(arguments, "tools_file", None)) is not None:
        values["tools_file"] = str(tools_file)
    config = arguments.configuration
    if isinstance(config, Recipe):
        values |= _plain(config)
    else:
        options = {name: getattr(arguments, name) for name in _options_of(type(arguments))}
        given = {name: value for name, value in options.items() if value is not None}
        values[command] = {**_plain(config), **to_jsonable_python(given)}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _plain(config: Frozen) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, Frozen) else to_jsonable_python(value)
        for name, value in config
        if not _is_hidden(config, name)
    }


def _options_of(arguments: type[Any]) -> dict[str, Any]:
    """The options of a command that a section may hold, with their types."""
    hints = get_type_hints(get_origin(arguments) or arguments, include_extras=True)
    return {name: hints[name] for name in _OPTIONS if name in hints}


def _is_hidden(config: Frozen, name: str) -> bool:
    field = type(config).model_fields.get(name)
    return field is not None and any(isinstance(mark, NotAnOption) for mark in field.metadata)


def _expanded(config: Any, value: Any) -> Any:
    """A model or a corpus that is named by its path alone, as the fields that it stands for."""
    if isinstance(config, ModelConfig) and isinstance(value, str):
        return {"path": value}
    if isinstance(config, CorpusConfig) and isinstance(value, str | list):
        return {"paths": [value] if isinstance(value, str) else value}
    return value


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys if isinstance(key, str))
