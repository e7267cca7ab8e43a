"""Where a command writes that is not told where (docs/decisions/0038-outputs-of-own-texts.md).

A recipe's folder, runs/NAME, holds what the recipe makes of its own inputs. A command that is given others,
and no output, writes elsewhere: what begins with a corpus or a model of one's own is in runs/NAME-INPUT, and
a later step writes beside what it reads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from pipeline.base.config import AnnotateConfig, ExportConfig, MergeConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.cli.recipes import RUNS, Recipe, RecipeName, written_below
from pipeline.storage.kinds import FINE_TUNED
from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import Frozen

GLOB_SIGNS = "*?["
_COMPRESSED = (".gz", ".zst", ".json", ".jsonl", ".txt", ".parquet")


def with_own_output(config: Frozen, own: Frozen, recipe: RecipeName, *, is_given: bool) -> Frozen:
    """`config` with another output if its inputs are not those of `own`, the recipe's configuration.

    The new output is said on standard error. `is_given`: the user named an output. Raises
    ConfigurationError if no folder suggests itself.
    """
    if is_given:
        return config
    if isinstance(config, Recipe) and isinstance(own, Recipe):
        return _moved(config, own, recipe)
    output = _own_output(config, own, recipe)
    before = getattr(config, "output", None)
    if output is None or output == before:
        return config
    print(
        f"{before} is for what the recipe {recipe} reads: writing to {output} (--output names another)",
        file=sys.stderr,
    )
    return config.model_copy(update={"output": output})


def _own_output(config: Any, own: Any, recipe: RecipeName) -> Path | None:
    folder = _folder_of(config, own, recipe)
    return None if folder is None else folder / Path(own.output).name


def _folder_of(config: Any, own: Any, recipe: RecipeName) -> Path | None:
    """The folder for the output; None if that of the recipe is right."""
    if isinstance(config, AnnotateConfig):  # and PlanConfig
        return _own_folder(config, own, recipe)
    if isinstance(config, MergeConfig) and config.annotations != own.annotations:
        annotations, *more = config.annotations
        if more or any(sign in str(annotations) for sign in GLOB_SIGNS):
            raise ConfigurationError("--output: name the folder for C* of several annotations")
        return _beside(annotations)
    if isinstance(config, ExportConfig | FinetuneConfig) and config.data != own.data:
        return _beside(config.data)
    if isinstance(config, FinetuneConfig) and not _are_same([config.model.path], [own.model.path]):
        return RUNS / f"{recipe}-{_name(config.model.path)}"
    if isinstance(config, EvaluateConfig | HarnessConfig):
        model = Path(config.generation.model.path)
        if str(model) != own.generation.model.path and FINE_TUNED.is_marked(model):
            return _beside(model)
    return None


def _beside(folder: Path) -> Path:
    """The folder that holds `folder`; of . and .. too, which name no folder."""
    return (folder.resolve() if folder.name in ("", "..") else folder).parent


def _own_folder(config: AnnotateConfig, own: AnnotateConfig, recipe: RecipeName) -> Path | None:
    """The run's folder for other texts or another model than those of a recipe that has its own texts."""
    if not own.corpus.paths:
        return None
    if config.corpus.paths and not _are_same(config.corpus.paths, own.corpus.paths):
        return RUNS / f"{recipe}-{_name(config.corpus.paths[0])}"
    if not _are_same([config.model.path], [own.model.path]):
        return RUNS / f"{recipe}-{_name(config.model.path)}"
    return None


def _are_same(paths: Sequence[str], others: Sequence[str]) -> bool:
    """Whether paths are written alike, but for a / at the end or a ./ in front."""
    return [*map(normpath, paths)] == [*map(normpath, others)]


def _moved(config: Recipe, own: Recipe, recipe: RecipeName) -> Recipe:
    """All steps of the command `demo` below another folder; an output that was changed stays."""
    folder = _own_folder(config.annotate, own.annotate, recipe)
    if folder is None:
        return config
    below = written_below(config, folder)
    steps = {
        name: step.model_copy(update={"output": getattr(below, name).output})
        for name, step in config
        if hasattr(step, "output") and step.output == getattr(own, name).output
    }
    shown = f"{own.annotate.output.parent} is for what the recipe {recipe} reads: writing to {folder}"
    print(shown, file=sys.stderr)
    return config.model_copy(update=steps)


def _name(path: str) -> str:
    """The name of a file, folder, glob or URI without its endings: pages/*.json.gz → pages."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]
    named = [part for part in parts if not any(sign in part for sign in GLOB_SIGNS)] or ["texts"]
    name = named[-1]
    while (stem := Path(name)).suffix in _COMPRESSED:
        name = stem.stem
    return re.sub(r"[^\w.-]+", "-", name)
