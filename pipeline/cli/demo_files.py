"""The files of the recipe `demo` are in a checkout of the repository, not in the installed package.

In: the arguments of a command. Raises ConfigurationError, before the command runs, if they name files
of demo/ in a folder without it. The files of tools are not checked here: the registry refuses a tool
that cannot start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli.commands import Arguments
from tools_service.base.errors import ConfigurationError

FOLDER = Path("demo")
_ALTERNATIVE = "annotate --recipe single_gpu --corpus TEXTS --tools Calculator Calendar"


def require_demo_files(arguments: Arguments[Any], program: str) -> None:
    """Raise ConfigurationError if corpus, model, prompts or questions are those of a missing demo/."""
    if arguments.recipe != "demo" or FOLDER.is_dir():
        return
    named = dict.fromkeys(_strings(arguments.config.model_dump(mode="json")))
    missing = [path for path in named if Path(path).is_relative_to(FOLDER)]
    if missing:
        raise ConfigurationError(
            f"{', '.join(missing)}: missing here; the recipe `demo` needs a checkout of the repository, so "
            f"run it there, or use another recipe with your own texts: {program} {_ALTERNATIVE}"
        )


def _strings(value: Any) -> Iterator[str]:
    """Every string in a configuration, except in the sections of tools."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "tools":
                yield from _strings(item)
