"""Says which command makes an input of a command that is still missing.

In: the arguments of a command. Raises ConfigurationError, before the command runs, if it would read what
another command writes and nothing is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.analysis_config import TableConfig, ThresholdsConfig
from pipeline.base.config import ExportConfig, MergeConfig
from pipeline.base.finetune_config import FinetuneConfig, MergeLoraConfig
from pipeline.cli.arguments import Arguments, ScalingArguments
from pipeline.cli.commands import COMMANDS
from pipeline.cli.evaluating import configs_of
from pipeline.cli.output_folders import GLOB_SIGNS
from pipeline.cli.recipes import RECIPES, RUNS, Recipe
from pipeline.cli.run_file import RunFile
from tools_service.base.errors import ConfigurationError

_MAX_SHOWN = 3
_FROM = {
    "annotate": "",
    "merge": " from what annotate has written",
    "finetune": " from the texts that annotate and merge have written",
    "evaluate": "",
}


def require_inputs(arguments: Arguments[Any]) -> None:
    """Raise ConfigurationError for the first input that another command has still to make."""
    for field, path, maker in _inputs(arguments):
        if Path(path).exists():
            continue
        what = "model" if maker == "finetune" else "file" if maker == "evaluate" else "folder"
        raise ConfigurationError(
            f"{field} {str(path)!r}: there is no such {what} yet; `{_command(maker, Path(path), arguments)}` "
            f"makes it{_FROM[maker]}{_others(Path(path))}"
        )


def _command(maker: str, output: Path, arguments: Arguments[Any]) -> str:
    """The command line of `maker` that writes `output`, with the recipe and the run file of `arguments`."""
    recipe = arguments.recipe
    options, usual = f" --recipe {recipe}", Path(getattr(RECIPES[recipe](), maker).output)
    if arguments.config_file:
        file = RunFile.of(
            ["--config", str(arguments.config_file)],
            {name: other.arguments for name, other in COMMANDS.items()},
        )
        config: Any = file.configuration(maker, COMMANDS[maker].config, recipe, None)
        usual = Path(config.output)
        options = f" --config {arguments.config_file}" + (options if recipe != file.recipe else "")
    return f"{maker}{options}" + ("" if output == usual else f" --output {output}")


def _inputs(arguments: Arguments[Any]) -> Iterator[tuple[str, str | Path, str]]:
    """Each input that a command makes: the field, the path, and the command."""
    config = arguments.configuration
    if isinstance(config, Recipe):
        return  # the command `demo` makes them all
    if isinstance(config, MergeConfig | ThresholdsConfig):
        for folder in config.annotations:
            if not any(sign in str(folder) for sign in GLOB_SIGNS):
                yield "annotations", folder, "annotate"
    if isinstance(config, ExportConfig | FinetuneConfig):
        yield "data", config.data, "merge"
    if isinstance(config, MergeLoraConfig):
        yield "adapter", config.adapter, "finetune"
    if isinstance(config, TableConfig):
        for file in config.evaluations:
            yield "evaluations", file, "evaluate"
    made = str(RECIPES[arguments.recipe]().finetune.output)
    for field, path in _models(arguments):
        if path == made or Path(path).parts[:1] == RUNS.parts:
            yield field, path, "finetune"


def _models(arguments: Arguments[Any]) -> Iterator[tuple[str, str]]:
    """The models of a command."""
    config = arguments.configuration
    if models := getattr(arguments, "models", ()):
        for entry, found in zip(models, configs_of(config, None, models).values(), strict=True):
            yield f"--models {entry.partition('=')[0]}", found.generation.model.path
    elif isinstance(arguments, ScalingArguments):
        return  # without --models it has none
    elif hasattr(config, "generation"):
        yield "model.path", config.generation.model.path
    elif hasattr(config, "model"):
        yield "model.path", config.model.path


def _others(path: Path) -> str:
    """Outputs of other runs that have the same name, as the end of a sentence."""
    found = [str(other) for other in sorted(RUNS.glob(f"*/{path.name}"))][:_MAX_SHOWN]
    return f"; there is {', '.join(found)}, if you mean that" if found else ""
