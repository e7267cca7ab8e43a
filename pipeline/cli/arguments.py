"""The arguments of the commands: a recipe, a configuration, and options of the command line only.

Every field of a configuration is an option (tyro); the docstrings are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import tyro

from pipeline.base.analysis_config import ReportConfig, StatusConfig, TableConfig
from pipeline.base.config import ExportConfig, ScoreConfig, TryConfig
from pipeline.base.fetch_config import FetchConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.cli.recipes import Recipe, RecipeName
from tools_service.base.settings import FilePath, Frozen, Text

C = TypeVar("C", bound=Frozen)
DEFAULT_RECIPE: RecipeName = "demo"


@dataclass(frozen=True, kw_only=True)
class Arguments(Generic[C]):
    """Arguments of every command."""

    recipe: RecipeName = DEFAULT_RECIPE
    """The values to start from; the defaults shown here are those of this recipe."""
    config_file: Annotated[FilePath | None, tyro.conf.arg(name="config")] = None
    """YAML or TOML file with the settings of a run, over the recipe, under options (docs/run_file.md)."""
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the settings in effect as YAML for --config, and do nothing else."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what would be read, run and written, and what is missing; do nothing else."""
    config: Annotated[C, tyro.conf.arg(name="")]

    @property
    def configuration(self) -> C:
        """`config` with what other arguments say of it."""
        return self.config


@dataclass(frozen=True, kw_only=True)
class ToolsArguments(Arguments[C]):
    tools_file: FilePath | None = None
    """TOML file for the tools (cluster/tools.toml): over the recipe, under --config and options."""


@dataclass(frozen=True, kw_only=True)
class FetchArguments(ToolsArguments[FetchConfig]):
    names: tyro.conf.Positional[tuple[Text, ...]] = ()
    """Names on the hub, or folders with pickled weights; more of --models."""

    @property
    def configuration(self) -> FetchConfig:
        return self.config.model_copy(update={"models": (*self.config.models, *self.names)})


@dataclass(frozen=True, kw_only=True)
class ReportedArguments(Arguments[C]):
    report: bool = True
    """Write a page to look at beside the result, report.html (`report` makes it later)."""


@dataclass(frozen=True, kw_only=True)
class ReportedToolsArguments(ReportedArguments[C], ToolsArguments[C]):
    """Of commands that use tools and write a report."""


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(ReportedArguments[FinetuneConfig]):
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Remove an earlier run in the output folder and start over."""


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(Arguments[ScoreConfig]):
    files: tyro.conf.Positional[tuple[Text, ...]] = ()
    """Files, folders, globs or URIs of JSON lines; the same as --files."""

    @property
    def configuration(self) -> ScoreConfig:
        return self.config.model_copy(update={"files": self.files}) if self.files else self.config


@dataclass(frozen=True, kw_only=True)
class TryArguments(ToolsArguments[TryConfig]):
    given_name: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw after <API> and the tool's name instead of after <API>, as the field of the tool's section."""
    all_draws: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show every position and every distinct draw."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object per text, and one with the summary."""

    @property
    def configuration(self) -> TryConfig:
        return self.config.model_copy(update={"given_name": True}) if self.given_name else self.config


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments[ExportConfig]):
    folder: tyro.conf.Positional[FilePath | None] = None
    """Folder that merge wrote; the same as --data."""

    @property
    def configuration(self) -> ExportConfig:
        return self.config.model_copy(update={"data": self.folder}) if self.folder else self.config


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(ToolsArguments[GenerateConfig]):
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to continue. If there are none: one per line from --file or standard input; on a terminal,
    typed one by one."""
    file: FilePath | None = None
    """File with one prompt per line."""
    interactive: tyro.conf.FlagCreatePairsOff[bool] = False
    """Type prompts one by one, with line editing and history, as without prompts on a terminal."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object per prompt: text with calls, calls, failed calls, tokens (docs/generate.md)."""
    trace: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what became of every call that was begun, on standard error or in the JSON objects."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ReportedToolsArguments[EvaluateConfig]):
    label: Text | None = None
    """Name of the model in the result file, models.LABEL; "model" if it is not given."""
    models: tuple[Text, ...] = ()
    """Several models, as LABEL=PATH in place of --label and --model; settings of one of them follow after
    commas, as in LABEL=PATH,disabled or LABEL=PATH,k=1."""


@dataclass(frozen=True, kw_only=True)
class SweepArguments(ToolsArguments[EvaluateConfig]):
    k: tuple[int, ...] = (0, 1, 3, 10)
    """The values of k, one evaluation each (section 5, Table 9)."""
    disabled: tyro.conf.FlagCreatePairsOff[bool] = False
    """Evaluate with calls disabled too."""
    label: Text | None = None
    """Put before the labels k0, k1, … in the result file: LABEL-k0."""


@dataclass(frozen=True, kw_only=True)
class ScalingArguments(ToolsArguments[EvaluateConfig]):
    models: tuple[Text, ...] = ()
    """The models, as LABEL=PATH; evaluated with calls and with calls disabled. LABEL=PATH,disabled is a
    baseline: disabled only."""


@dataclass(frozen=True, kw_only=True)
class TableArguments(Arguments[TableConfig]):
    files: tyro.conf.Positional[tuple[FilePath, ...]] = ()
    """Files that evaluate, sweep or scaling wrote; the same as --evaluations."""

    @property
    def configuration(self) -> TableConfig:
        return self.config.model_copy(update={"evaluations": self.files}) if self.files else self.config


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments[ReportConfig]):
    folder: tyro.conf.Positional[FilePath | None] = None
    """What to show; the same as --folder."""

    @property
    def configuration(self) -> ReportConfig:
        return self.config.model_copy(update={"folder": self.folder}) if self.folder else self.config


@dataclass(frozen=True, kw_only=True)
class StatusArguments(Arguments[StatusConfig]):
    folder: tyro.conf.Positional[FilePath | None] = None
    """What to look at; the same as --folder."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object in place of lines."""

    @property
    def configuration(self) -> StatusConfig:
        return self.config.model_copy(update={"folder": self.folder}) if self.folder else self.config


@dataclass(frozen=True, kw_only=True)
class DemoArguments(ReportedToolsArguments[Recipe]):
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run finished steps again."""
